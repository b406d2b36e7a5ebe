"""Hardware: what machine this is.

May import: the base modules. No torch.
"""

from alpage.hardware.cpu import cpu_features, has_bf16_compute, num_usable_cores
from alpage.hardware.memory import available_memory_bytes

__all__ = ["available_memory_bytes", "cpu_features", "has_bf16_compute", "num_usable_cores"]
