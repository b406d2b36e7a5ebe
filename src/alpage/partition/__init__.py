"""Partition: the same model files, cut to a layout and joined by collectives.

May import: layout, hardware and the base modules.
"""

from alpage.partition.communicator import Communicator, ProcessGroups
from alpage.partition.inline import run_inline
from alpage.partition.padding import attending_shape
from alpage.partition.partitioned import Partitioned
from alpage.partition.sharder import REPLICATED, Parts, Replicated, Sharder

__all__ = [
    "REPLICATED",
    "Communicator",
    "Partitioned",
    "Parts",
    "ProcessGroups",
    "Replicated",
    "Sharder",
    "attending_shape",
    "run_inline",
]
