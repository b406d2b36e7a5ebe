"""Cost: what a step takes at least, in operations, bytes and seconds.

May import: hardware and the base modules. No torch.
"""

from alpage.cost.arithmetic import roofline_s, step_bytes, step_flops

__all__ = ["roofline_s", "step_bytes", "step_flops"]
