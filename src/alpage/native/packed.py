"""Packed: linear layers by our own kernels, with weights that were packed once.

Dims: M rows of x, K features in, N features out.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import final

import torch
from torch import Tensor

from alpage.native.kernels import import_kernels


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A matrix as the kernels read it; rows past the last are zeros.

    A row of x gets the same bits whatever rows are beside it, and whatever the number of threads.

    Attributes:
        num_in: K.
        num_out: N.
        panels: the packed numbers.
        scale_N: of the rows of a matrix of int8, float32; None: it is of bfloat16.
        correction_N: int32: what the kernels subtract, since they take x as unsigned.
    """

    num_in: int
    num_out: int
    panels: Tensor
    scale_N: Tensor | None = None
    correction_N: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        parts = (self.panels, self.scale_N, self.correction_N)
        return sum(part.nbytes for part in parts if part is not None)


def has_linear() -> bool:
    """Whether this machine has the kernels, and the instructions that they need."""
    module = import_kernels()
    return isinstance(module, ModuleType) and bool(module.has_linear())


def pack(weight_NK: Tensor) -> PackedWeight:
    """Return a matrix of bfloat16, packed."""
    assert weight_NK.dtype == torch.bfloat16
    assert weight_NK.stride(1) == 1
    num_out, num_in = weight_NK.shape
    module = _module()
    panels = torch.empty((_padded(num_out, module.panel), _padded(num_in, 2)), dtype=torch.bfloat16)
    module.pack_bfloat16(
        weight_NK.data_ptr(),
        weight_NK.stride(0),
        num_out,
        num_in,
        panels.data_ptr(),
        torch.get_num_threads(),
    )
    return PackedWeight(num_in=num_in, num_out=num_out, panels=panels)


def pack_int8(weight_NK: Tensor, scale_N: Tensor) -> PackedWeight:
    """Return a matrix of int8 with a scale for each row, packed."""
    assert weight_NK.dtype == torch.int8
    assert weight_NK.stride(1) == 1
    num_out, num_in = weight_NK.shape
    module = _module()
    num_padded = _padded(num_out, module.panel)
    panels = torch.empty((num_padded, _padded(num_in, 4)), dtype=torch.int8)
    correction_N = torch.empty(num_padded, dtype=torch.int32)
    module.pack_int8(
        weight_NK.data_ptr(),
        weight_NK.stride(0),
        num_out,
        num_in,
        panels.data_ptr(),
        correction_N.data_ptr(),
        torch.get_num_threads(),
    )
    padded_scale_N = torch.zeros(num_padded)
    padded_scale_N[:num_out] = scale_N
    return PackedWeight(
        num_in=num_in,
        num_out=num_out,
        panels=panels,
        scale_N=padded_scale_N,
        correction_N=correction_N,
    )


def linear(x: Tensor, weight: PackedWeight, bias_N: Tensor | None = None) -> Tensor:
    """Return x times a packed weight, plus a bias.

    A row of x is rounded to 8 bits of its own scale where the weight is (dynamic quantization), and
    sums are exact; in bfloat16 sums are of float32.

    Args:
        x: bfloat16, [..., K], last dim dense.
        weight: N rows of K.
        bias_N: float32.

    Returns:
        bfloat16, [..., N].
    """
    assert x.dtype == torch.bfloat16
    x_MK = x.reshape(-1, weight.num_in)
    if x_MK.stride(1) != 1 or weight.num_in % 2:
        x_MK = torch.nn.functional.pad(x_MK, (0, weight.num_in % 2))
    num_rows = len(x_MK)
    y_MN = torch.empty((num_rows, weight.num_out), dtype=torch.bfloat16)
    scale, correction, quantized, x_scale = 0, 0, 0, 0
    room = None
    if weight.scale_N is not None and weight.correction_N is not None:
        width = _padded(weight.num_in, 4)
        # Numbers of rows, then their scales.
        room = torch.empty(num_rows * (width + 4), dtype=torch.uint8)
        scale, correction = weight.scale_N.data_ptr(), weight.correction_N.data_ptr()
        x_scale = room.data_ptr()
        quantized = x_scale + 4 * num_rows
    _module().multiply(
        x_MK.data_ptr(),
        x_MK.stride(0),
        weight.panels.data_ptr(),
        0 if bias_N is None else bias_N.data_ptr(),
        y_MN.data_ptr(),
        y_MN.stride(0),
        num_rows,
        weight.num_out,
        weight.num_in,
        scale,
        correction,
        quantized,
        x_scale,
        torch.get_num_threads(),
    )
    return y_MN.view(*x.shape[:-1], weight.num_out)


def _module() -> ModuleType:
    module = import_kernels()
    assert isinstance(module, ModuleType), "the caller has asked whether it is there"
    return module


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
