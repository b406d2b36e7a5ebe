"""Runtime: what this machine does with a model, measured while it does it.

May import: models, ops, hardware, cost and the base modules.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.runtime.ceilings import Ceilings, measure_ceilings

__all__ = ["Ceilings", "measure_ceilings"]

__getattr__ = lazy_names(__name__, {"Ceilings": "ceilings", "measure_ceilings": "ceilings"})
