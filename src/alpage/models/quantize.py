"""Quantize: matrices of 8 and of 4 bits.

Dims: F features out (rows), D features in, B blocks of a row; `...` experts, if there are several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

Quantization: TypeAlias = Literal["int8", "int4"]

_MAX_INT8 = 127
_GROUP = 96
_CHUNK_ROWS = 2**13


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Matrix:
    """A matrix in 4 bits: `scale * number + minimum` in each block of 32 along a row.

    Attributes:
        number_FD: uint8, at most 15.
        scale_FB: float16.
        minimum_FB: float16.
    """

    number_FD: Tensor
    scale_FB: Tensor
    minimum_FB: Tensor

    @staticmethod
    def stacked(matrices: Sequence["Int4Matrix"]) -> "Int4Matrix":
        """Return the rows of several."""
        return Int4Matrix(
            number_FD=torch.cat([one.number_FD for one in matrices]),
            scale_FB=torch.cat([one.scale_FB for one in matrices]),
            minimum_FB=torch.cat([one.minimum_FB for one in matrices]),
        )

    def rows(self, order: Tensor) -> "Int4Matrix":
        """Return some rows, in this order."""
        return Int4Matrix(
            number_FD=self.number_FD[order],
            scale_FB=self.scale_FB[order],
            minimum_FB=self.minimum_FB[order],
        )


def int8_rows(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight_FD as int8 and scale_F in the weight's dtype; multiplied they are nearly it.

    Rounding errors are at most half of a 127th of a row's largest number.
    """
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True).float() / _MAX_INT8
    # A row of zeros stays one.
    whole_FD = (weight_FD / scale_F1.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return whole_FD.to(torch.int8), scale_F1.squeeze(-1).to(weight_FD.dtype)


def int8_groups(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight_FD as int8 and scale_FG as float16, for each group of 96 along a row."""
    # A vocabulary is large: not all of it is in float32 at once.
    parts = [_int8_groups(part) for part in torch.split(weight_FD, _CHUNK_ROWS)]
    whole, scale = zip(*parts, strict=True)
    return torch.cat(whole), torch.cat(scale)


def _int8_groups(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    num_in = weight_FD.shape[1]
    padded = torch.nn.functional.pad(weight_FD.float(), (0, -num_in % _GROUP))
    group_FGg = padded.view(len(weight_FD), -1, _GROUP)
    scale_FG = (group_FGg.abs().amax(-1) / _MAX_INT8).half()
    step_FG1 = scale_FG[..., None].float().clamp_min(torch.finfo(torch.float32).tiny)
    # The scale was rounded, so a group's greatest number may be a little beyond.
    whole_FGg = (group_FGg / step_FG1).round_().clamp_(-_MAX_INT8, _MAX_INT8)
    return whole_FGg.flatten(1)[:, :num_in].to(torch.int8), scale_FG


def scaled_product(x: Tensor, weight_FD: Tensor, scale_F: Tensor) -> Tensor:
    """Return x_...F, the product with a matrix in 8 bits."""
    return torch.nn.functional.linear(x, weight_FD.to(x.dtype)) * scale_F
