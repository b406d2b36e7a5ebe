"""Cost: what a step takes, in operations, bytes and seconds, on one device or a mesh of them.

May import: layout, hardware and the base modules. No torch.
"""

from alpage.cost.arithmetic import roofline_s, step_bytes, step_flops
from alpage.cost.efficiency import EFFICIENCIES, Efficiency
from alpage.cost.forward import Precision, Step, Terms, forward_terms
from alpage.cost.memory import DeviceMemory, device_memory, max_context

__all__ = [
    "EFFICIENCIES",
    "DeviceMemory",
    "Efficiency",
    "Precision",
    "Step",
    "Terms",
    "device_memory",
    "forward_terms",
    "max_context",
    "roofline_s",
    "step_bytes",
    "step_flops",
]
