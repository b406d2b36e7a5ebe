"""Runtime: what this machine does with a model, measured while it does it.

May import: models, ops, hardware, cost and the base modules.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.runtime.calibration import Calibration, calibrate, num_local_devices
    from alpage.runtime.ceilings import Ceilings, measure_ceilings
    from alpage.runtime.processes import Processes
    from alpage.runtime.rank import Port

__all__ = [
    "Calibration",
    "Ceilings",
    "Port",
    "Processes",
    "calibrate",
    "measure_ceilings",
    "num_local_devices",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Calibration": "calibration",
        "calibrate": "calibration",
        "num_local_devices": "calibration",
        "Ceilings": "ceilings",
        "measure_ceilings": "ceilings",
        "Port": "rank",
        "Processes": "processes",
    },
)
