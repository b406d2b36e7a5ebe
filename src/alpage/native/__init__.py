"""Native: attention, KV writes and linear layers in C++ for CPUs, where there was a compiler.

`load()` gives the kernels or None; `unavailable_reason()` then says why.
May import: torch. Nothing is loaded before the first call.
"""

from alpage.native.kernels import Kernels, Step, load, unavailable_reason
from alpage.native.packed import (
    Kind,
    PackedWeight,
    has_linear,
    linear,
    pack,
    pack_int4,
    pack_int8,
    pack_int8_groups,
)
from alpage.native.program import NativeProgram
from alpage.native.rows import draw, log_sum_exp, rms_norm, rotate, silu_mul

__all__ = [
    "Kernels",
    "Kind",
    "NativeProgram",
    "PackedWeight",
    "Step",
    "draw",
    "has_linear",
    "linear",
    "load",
    "log_sum_exp",
    "pack",
    "pack_int4",
    "pack_int8",
    "pack_int8_groups",
    "rms_norm",
    "rotate",
    "silu_mul",
    "unavailable_reason",
]
