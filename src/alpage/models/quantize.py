"""Quantize: a matrix in 8 bits, with a scale for each of its rows.

Dims: F features out (rows), D features in; `...` experts, if there are several.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Quantization: TypeAlias = Literal["int8"]

_MAX_INT8 = 127


def int8_rows(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight_FD as int8 and scale_F in the weight's dtype; multiplied they are nearly it.

    Rounding errors are at most half of a 127th of a row's largest number.
    """
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True).float() / _MAX_INT8
    # A row of zeros stays one.
    whole_FD = (weight_FD / scale_F1.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return whole_FD.to(torch.int8), scale_F1.squeeze(-1).to(weight_FD.dtype)


def scaled_product(x: Tensor, weight_FD: Tensor, scale_F: Tensor) -> Tensor:
    """Return x_...F, the product with a matrix in 8 bits."""
    return torch.nn.functional.linear(x, weight_FD.to(x.dtype)) * scale_F
