"""Packed: linear layers by our own kernels, with weights that were packed once.

Dims: M rows of x, K features in, N features out.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Final, Literal, TypeAlias, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from alpage.native.kernels import import_kernels

Kind: TypeAlias = Literal["bfloat16", "int8", "int8_groups", "int4"]

_BLOCK: Final = 32
_LINE_BYTES: Final = 64
# Lines this far apart share a set of a first cache, and few sets of the others.
_SET_LINES: Final = 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A matrix as the kernels read it.

    A row of x gets the same bits whatever rows are beside it, and whatever the number of threads.

    Attributes:
        kind: of its numbers.
        num_in: K.
        num_out: N.
        panels: the packed numbers.
        scale_N: of the rows of int8, float32; zeros past the last.
    """

    kind: Kind
    num_in: int
    num_out: int
    panels: Tensor
    scale_N: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return self.panels.nbytes + (0 if self.scale_N is None else self.scale_N.nbytes)

    @property
    def quantized_bytes(self) -> int | None:
        """Of a row of x in 8 bits; None: products take it as it is."""
        if self.kind == "bfloat16":
            return None
        module = _module()
        num_bytes: int = -(-self.num_in // module.group) * module.group_bytes
        return num_bytes


def has_linear(kind: Kind = "bfloat16", *, isa: str | None = None) -> bool:
    """Whether there are kernels that multiply with packed weights of a kind.

    Args:
        kind: see `PackedWeight`. Those of bfloat16 are multiplied everywhere, the others where
            there are instructions for 8 bits.
        isa: an instruction set by name; None: the best of this machine.
    """
    module = import_kernels()
    return isinstance(module, ModuleType) and bool(module.has_linear(kind, isa))


def pack(weight_NK: Tensor) -> PackedWeight:
    """Return a matrix of bfloat16, packed."""
    assert weight_NK.dtype == torch.bfloat16
    num_out, num_in = weight_NK.shape
    return PackedWeight(kind="bfloat16", num_in=num_in, num_out=num_out, panels=_panels(weight_NK))


def pack_int8(weight_NK: Tensor, scale_N: Tensor) -> PackedWeight:
    """Return a matrix of int8 with a scale for each row, packed."""
    assert weight_NK.dtype == torch.int8
    num_out, num_in = weight_NK.shape
    # The kernels take weights as unsigned: 128 more than they are.
    panels = _panels(weight_NK ^ -128)
    padded_scale_N = torch.zeros(len(panels))
    padded_scale_N[:num_out] = scale_N
    return PackedWeight(
        kind="int8", num_in=num_in, num_out=num_out, panels=panels, scale_N=padded_scale_N
    )


def pack_int8_groups(number_NK: Tensor, scale_NG: Tensor) -> PackedWeight:
    """Return a matrix of 8 bits, packed: in each of G groups of 96 along K, scale * number.

    Args:
        number_NK: int8.
        scale_NG: float16.
    """
    assert number_NK.dtype == torch.int8
    assert scale_NG.dtype == torch.float16
    num_out, num_in = number_NK.shape
    group = _module().group
    # The kernels take weights as unsigned: 128 more than they are.
    bytes_NK = pad((number_NK ^ -128).view(torch.uint8), (0, -num_in % group))
    panels = _block_panels(bytes_NK.reshape(num_out, -1, group // 4, 4), (scale_NG,))
    return PackedWeight(kind="int8_groups", num_in=num_in, num_out=num_out, panels=panels)


def pack_int4(number_NK: Tensor, scale_NB: Tensor, minimum_NB: Tensor) -> PackedWeight:
    """Return a matrix of 4 bits, packed: in B blocks of 32 along K, scale * number + minimum.

    Args:
        number_NK: uint8, in [0, 15].
        scale_NB: float16.
        minimum_NB: float16.
    """
    assert number_NK.dtype == torch.uint8
    assert scale_NB.dtype == minimum_NB.dtype == torch.float16
    num_out, num_in = number_NK.shape
    assert num_in % _BLOCK == 0
    # Pair of pieces, piece of the pair, element.
    even, odd = number_NK.reshape(num_out, -1, _BLOCK // 8, 2, 4).unbind(-2)
    panels = _block_panels(even | odd << 4, (scale_NB, minimum_NB))
    return PackedWeight(kind="int4", num_in=num_in, num_out=num_out, panels=panels)


def linear(
    x: Tensor, weight: PackedWeight, bias_N: Tensor | None = None, *, isa: str | None = None
) -> Tensor:
    """Return x times a packed weight, plus a bias.

    Where the weight is not of bfloat16, a row of x is rounded to 8 bits, with a scale for each 96
    of its numbers (dynamic quantization); sums within such a group are exact, and all others are of
    float32.

    Args:
        x: bfloat16, [..., K], last dim dense.
        weight: N rows of K.
        bias_N: float32.
        isa: an instruction set by name; None: the best.

    Returns:
        bfloat16, [..., N].
    """
    assert x.dtype == torch.bfloat16
    x_MK = x.reshape(-1, weight.num_in)
    if x_MK.stride(1) != 1 or weight.num_in % 2:
        x_MK = pad(x_MK, (0, weight.num_in % 2))
    y_MN = _rows(len(x_MK), weight.num_out)
    groups = torch.empty(len(x_MK) * (weight.quantized_bytes or 0), dtype=torch.uint8)
    _module().multiply(
        weight.kind,
        x_MK.data_ptr(),
        x_MK.stride(0),
        weight.panels.data_ptr(),
        0 if weight.scale_N is None else weight.scale_N.data_ptr(),
        0 if bias_N is None else bias_N.data_ptr(),
        y_MN.data_ptr(),
        y_MN.stride(0),
        len(x_MK),
        weight.num_out,
        weight.num_in,
        groups.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return y_MN.view(*x.shape[:-1], weight.num_out)


def _rows(num_rows: int, num_out: int) -> Tensor:
    """Return rows of y, which do not all begin in the same few sets of the caches."""
    lines = -(-2 * num_out // _LINE_BYTES)
    stride = (lines + 1) * _LINE_BYTES // 2 if lines % _SET_LINES == 0 else num_out
    return torch.empty((num_rows, stride), dtype=torch.bfloat16)[:, :num_out]


def _panels(weight_NK: Tensor) -> Tensor:
    assert weight_NK.stride(1) == 1
    num_out, num_in = weight_NK.shape
    module, element_bytes = _module(), weight_NK.element_size()
    num_rows, num_columns = _padded(num_out, module.panel), _padded(num_in, 4 // element_bytes)
    panels = torch.empty((num_rows, num_columns), dtype=weight_NK.dtype)
    module.pack(
        weight_NK.data_ptr(),
        weight_NK.stride(0) * element_bytes,
        num_out,
        num_in * element_bytes,
        panels.data_ptr(),
        torch.get_num_threads(),
    )
    return panels


def _block_panels(byte_NBP4: Tensor, of_block_NB: tuple[Tensor, ...]) -> Tensor:
    """Return panels of blocks, each of P pieces of all its outputs, then what is of the block."""
    panel = _module().panel
    lacking = -len(byte_NBP4) % panel
    by_output = pad(byte_NBP4, (0, 0, 0, 0, 0, 0, 0, lacking))
    by_panel = by_output.view(-1, panel, *byte_NBP4.shape[1:])
    parts = [by_panel.permute(0, 2, 3, 1, 4).flatten(2)]
    for part_NB in of_block_NB:
        by_block = (
            pad(part_NB, (0, 0, 0, lacking)).reshape(-1, panel, part_NB.shape[1]).transpose(1, 2)
        )
        parts.append(by_block.contiguous().view(torch.uint8))
    return torch.cat(parts, -1)


def _module() -> ModuleType:
    module = import_kernels()
    assert isinstance(module, ModuleType), "the caller has asked whether it is there"
    return module


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
