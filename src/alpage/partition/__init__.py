"""Partition: the same model files, cut to a layout and to stages, and joined by collectives.

May import: layout, hardware and the base modules.
"""

from alpage.partition.communicator import Communicator, ProcessGroups
from alpage.partition.inline import run_inline
from alpage.partition.padding import attending_shape
from alpage.partition.partitioned import Partitioned
from alpage.partition.pipe import Pipe
from alpage.partition.sharder import REPLICATED, Parts, Sharder
from alpage.partition.stage import Stage, stages

__all__ = [
    "REPLICATED",
    "Communicator",
    "Partitioned",
    "Parts",
    "Pipe",
    "ProcessGroups",
    "Sharder",
    "Stage",
    "attending_shape",
    "run_inline",
    "stages",
]
