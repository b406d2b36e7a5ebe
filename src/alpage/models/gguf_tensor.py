"""GGUF tensors: blocks of quantised numbers, and how they become floats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from alpage.errors import Unsupported
from alpage.models.quantize import Int4Matrix

_FLOATS: Final[Mapping[GGMLQuantizationType, torch.dtype]] = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_INT4_KINDS: Final = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)
_CHUNK_ELEMENTS: Final = 2**16  # 256 KiB of floats: temporaries that fit the cache
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A tensor in a GGUF file that is mapped into memory.

    Args:
        name: in the file.
        shape: slowest dimension first.
        kind: the type of its blocks.
        raw: its bytes, a view of the mapped file.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    raw: _Bytes

    @property
    def dtype_name(self) -> str:
        """The type of its blocks, such as F32 or Q4_1."""
        return self.kind.name

    def load(self) -> Tensor:
        """Return the tensor: floats as a private view of the file, blocks as new float32.

        Raises:
            Unsupported: there is no dequantisation for its type.
        """
        if self.kind in _FLOATS:
            return torch.from_numpy(self.raw).view(_FLOATS[self.kind]).reshape(self.shape)
        try:
            return torch.from_numpy(_dequantise(self.raw, self.kind)).reshape(self.shape)
        except NotImplementedError as error:
            raise Unsupported(
                field=self.name,
                value=self.kind.name,
                limit="is a type that cannot be dequantised",
                remedy="Use a file of a common quantisation, such as Q4_K_M or Q8_0",
            ) from error

    def int4(self) -> Int4Matrix | None:
        """Return a matrix of Q4_0 or Q4_1 as it is; None: it is of another type."""
        if self.kind not in _INT4_KINDS or len(self.shape) != 2:
            return None
        block_size, block_bytes = GGML_QUANT_SIZES[self.kind]
        num_rows, num_blocks = self.shape[0], self.shape[1] // block_size
        # float16 in front, then 16 bytes: the first half of the block in the low bits.
        block_RBb = torch.from_numpy(self.raw).view(num_rows, num_blocks, block_bytes)
        nibbles = block_RBb[..., -block_size // 2 :]
        scales = block_RBb[..., : -block_size // 2].contiguous().view(torch.float16)
        return Int4Matrix(
            number_FD=torch.cat((nibbles & 15, nibbles >> 4), -1).flatten(1),
            scale_FB=scales[..., 0],
            # Q4_0 has numbers from -8 to 7.
            minimum_FB=scales[..., 1] if scales.shape[-1] == 2 else -8 * scales[..., 0],
        )


def _dequantise(raw: _Bytes, kind: GGMLQuantizationType) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the floats of some blocks, in order.

    Blocks know nothing of rows, so they may be taken in chunks of any size. Whole tensors, as
    `gguf.quants` takes them, cost three times as much: mostly page faults on its temporaries.
    """
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = raw.reshape(-1, block_bytes)
    values = np.empty((len(blocks), block_size), dtype=np.float32)
    step = _CHUNK_ELEMENTS // block_size
    # Damaged scales can be infinite; that is the file's content, not a fault of this code.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(blocks), step):
            chunk = blocks[start : start + step]
            values[start : start + step] = dequantize(chunk.reshape(1, -1), kind).reshape(
                -1, block_size
            )
    return values
