"""Native: attention and KV writes in C++ for CPUs, where alpage was installed with a compiler.

`load()` gives the kernels or None; `unavailable_reason()` then says why.
May import: torch. Nothing is loaded before the first call.
"""

from alpage.native.kernels import Kernels, Step, load, unavailable_reason

__all__ = ["Kernels", "Step", "load", "unavailable_reason"]
