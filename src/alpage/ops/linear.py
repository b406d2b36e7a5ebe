"""Linear: matrices packed for our kernels, where there are such for them.

Dims: N features out (rows), K features in.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from alpage import native
from alpage.native import PackedWeight

__all__ = ["PackedWeight", "linear", "packed"]


def packed(weight_NK: Tensor, scale_N: Tensor | None = None) -> PackedWeight | None:
    """Return a matrix for `linear`; None where PyTorch has to multiply.

    Args:
        weight_NK: bfloat16, or int8 with a scale for each row.
        scale_N: of the rows of int8, in the dtype of activations.
    """
    dtype = weight_NK.dtype if scale_N is None else scale_N.dtype
    if weight_NK.device.type != "cpu" or dtype != torch.bfloat16 or not native.has_linear():
        return None
    if scale_N is None:
        return native.pack(weight_NK)
    return native.pack_int8(weight_NK, scale_N.float())


def linear(x: Tensor, weight: PackedWeight, bias_N: Tensor | None = None) -> Tensor:
    """Return x [..., K] times a packed weight, plus a bias of float32: [..., N], bfloat16."""
    if has_torch_function_unary(x):
        return handle_torch_function(linear, (x,), x, weight, bias_N)
    return native.linear(x, weight, bias_N)
