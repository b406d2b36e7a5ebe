"""CLI: what `alpage` does on a command line: results on stdout, everything else on stderr.

The composition root: may import every room. Commands import PyTorch only once they need it.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.cli.app import main

__all__ = ["main"]

__getattr__ = lazy_names(__name__, {"main": "app"})
