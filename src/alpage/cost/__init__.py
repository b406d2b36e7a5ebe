"""Cost: what a step takes, in operations, bytes and seconds, on one device or a mesh of them.

May import: layout, hardware and the base modules. No torch.
"""

from alpage.cost.arithmetic import roofline_s, step_bytes, step_flops
from alpage.cost.collectives import collective_time
from alpage.cost.efficiency import EFFICIENCIES, Efficiency
from alpage.cost.forward import (
    DTYPE_BYTES,
    Precision,
    Step,
    Terms,
    forward_terms,
    padded_sizes,
    round_wait_s,
)
from alpage.cost.memory import DeviceMemory, device_memory, max_context

__all__ = [
    "DTYPE_BYTES",
    "EFFICIENCIES",
    "DeviceMemory",
    "Efficiency",
    "Precision",
    "Step",
    "Terms",
    "collective_time",
    "device_memory",
    "forward_terms",
    "max_context",
    "padded_sizes",
    "roofline_s",
    "round_wait_s",
    "step_bytes",
    "step_flops",
]
