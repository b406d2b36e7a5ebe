"""Layout: how tensors lie on a mesh, and what it takes to lie otherwise.

May import: hardware and the base modules. No torch.
"""

from alpage.layout.attention import Attention, attentions, dividing, head_axes
from alpage.layout.block import Change, block_rounds, ends_changes, weight_changes
from alpage.layout.collective import Collective
from alpage.layout.named import LAYOUTS, Layout, named_layout
from alpage.layout.redistribution import redistribute
from alpage.layout.sharding import Dim, Sharding

__all__ = [
    "LAYOUTS",
    "Attention",
    "Change",
    "Collective",
    "Dim",
    "Layout",
    "Sharding",
    "attentions",
    "block_rounds",
    "dividing",
    "ends_changes",
    "head_axes",
    "named_layout",
    "redistribute",
    "weight_changes",
]
