"""Linear: matrices packed for our kernels, where there are such for them.

Dims: N features out (rows), K features in.
"""

import hashlib

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from alpage import native
from alpage.native import PackedWeight

__all__ = [
    "PackedWeight",
    "is_packable",
    "linear",
    "packed",
    "packed_groups",
    "packed_int4",
    "packing",
]


def is_packable(weight: Tensor, kind: native.Kind = "bfloat16") -> bool:
    """Whether our kernels multiply activations like this tensor with packed weights of a kind."""
    is_supported = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return is_supported and native.has_linear(kind)


def packed(weight_NK: Tensor, scale_N: Tensor | None = None) -> PackedWeight | None:
    """Return a matrix for `linear`; None where PyTorch has to multiply.

    Args:
        weight_NK: bfloat16, or int8 with a scale for each row.
        scale_N: of the rows of int8, in the dtype of activations.
    """
    if scale_N is None:
        return native.pack(weight_NK) if is_packable(weight_NK) else None
    return native.pack_int8(weight_NK, scale_N.float()) if is_packable(scale_N, "int8") else None


def packed_groups(number_NK: Tensor, scale_NG: Tensor) -> PackedWeight:
    """Return a matrix of 8 bits with scales of groups, for `linear`, as `packed_int4`."""
    return native.pack_int8_groups(number_NK, scale_NG)


def packed_int4(number_NK: Tensor, scale_NB: Tensor, minimum_NB: Tensor) -> PackedWeight:
    """Return a matrix of 4 bits for `linear`, where that kind `is_packable`."""
    return native.pack_int4(number_NK, scale_NB, minimum_NB)


def packing() -> str:
    """Return a text that is another one where matrices are packed in another way."""
    kernels = native.load()
    if kernels is None or not native.has_linear():
        return ""
    number_NK = (torch.arange(48 * 96) % 15).to(torch.uint8).view(48, 96)
    scale_NB = torch.arange(48 * 3).view(48, 3).half()
    packings = (
        native.pack(number_NK.bfloat16()),
        native.pack_int8(number_NK.to(torch.int8), scale_NB[:, 0]),
        native.pack_int8_groups(number_NK.to(torch.int8), scale_NB[:, :1]),
        native.pack_int4(number_NK, scale_NB, -scale_NB),
    )
    # What kinds are packed hangs on the instructions too.
    digest = hashlib.sha256(kernels.isa.encode())
    for one in packings:
        digest.update(one.panels.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def linear(x: Tensor, weight: PackedWeight, bias_N: Tensor | None = None) -> Tensor:
    """Return x [..., K] times a packed weight, plus a bias of float32: [..., N], bfloat16."""
    if has_torch_function_unary(x):
        return handle_torch_function(linear, (x,), x, weight, bias_N)
    return native.linear(x, weight, bias_N)
