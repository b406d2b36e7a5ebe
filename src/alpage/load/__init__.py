"""Load: requests sent to a server as they would come of themselves, and what came of them.

An open loop: a request is sent when its time has come, whether or not others are answered, and its
latencies count from that time. May import: aiohttp, and the base modules.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.load.arrivals import arrival_times
    from alpage.load.child import server_of
    from alpage.load.figures import Figures, Slo, to_figures
    from alpage.load.generator import Load, generate
    from alpage.load.target import Target

__all__ = [
    "Figures",
    "Load",
    "Slo",
    "Target",
    "arrival_times",
    "generate",
    "server_of",
    "to_figures",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Figures": "figures",
        "Load": "generator",
        "Slo": "figures",
        "Target": "target",
        "arrival_times": "arrivals",
        "generate": "generator",
        "server_of": "child",
        "to_figures": "figures",
    },
)
