"""KV: the past that attention looks at, kept in pages.

Dims: T new tokens of all sequences, B sequences, P pages (in a table or in the pool), L layers,
S places in a page, H query heads, G key/value heads, K head dim.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from alpage import native
from alpage.workload import KV_SCALE_BYTES, ModelShape

# A long prompt's. A page of 16 tokens takes a virtual machine as long as a tenth of a small step.
_TOKENS_AHEAD: Final = 1024


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """Which new token belongs to whom, and where its keys and values go: one step, flat.

    The tokens of all sequences lie one after the other. Query i of a sequence with n new tokens
    stands at position `context - n + i` and sees that position and those before it.

    Attributes:
        num_queries: new tokens of each sequence, at least one.
        contexts: tokens of each sequence after the step.
        query_start_B1: int32 prefix sums of `num_queries`, from 0.
        context_B: int32, `contexts` on the device.
        table_BP: int32, the pages of each sequence; entries behind its last page mean nothing.
        slot_T: int64, place of each new token in the pool: page * page size + place in the page.
    """

    num_queries: Sequence[int]
    contexts: Sequence[int]
    query_start_B1: Tensor
    context_B: Tensor
    table_BP: Tensor
    slot_T: Tensor


@final
class KvPool:
    """The pages of all layers, in one tensor `kv_L2PGSK` (ADR 0005).

    Pages of int8 have the scales of their tokens within their heads' tiles, so that what moves a
    page moves these (ADR 0017): K is then a head's numbers and the bytes of one scale.

    It begins as zeros: places that no token has reached are masked, and what is masked must be
    finite.
    """

    @staticmethod
    def zeros(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> "KvPool":
        """Return a pool of the sizes L2PGSK. A CPU's takes memory as its pages are first used."""
        if device.type != "cpu":
            return KvPool(torch.zeros(tuple(sizes), dtype=dtype, device=device))
        # What the system maps is zero; PyTorch would write zeros.
        num_bytes = math.prod(sizes) * dtype.itemsize
        memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pool = torch.frombuffer(memory, dtype=torch.int8)[:num_bytes]
        return KvPool(pool.view(dtype).view(tuple(sizes)))

    @staticmethod
    def of(
        shape: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "KvPool":
        """Return a pool for a model's keys and values, of the model's dtype or int8."""
        width = shape.head_dim + scale_bytes(dtype)
        sizes = (shape.num_layers, 2, num_pages, shape.num_kv_heads, page_size, width)
        return KvPool.zeros(sizes, dtype, device)

    def __init__(self, kv_L2PGSK: Tensor) -> None:
        self.kv_L2PGSK = kv_L2PGSK
        self.layers = list(kv_L2PGSK)
        self._kernels = native.load() if kv_L2PGSK.device.type == "cpu" else None
        self._num_populated = 0

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""
        return self.kv_L2PGSK.shape[2]

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.kv_L2PGSK.shape[4]

    def populate(self, slot_T: Tensor) -> None:
        """Have the system give the memory of pages that a step is the first to write.

        Left alone it gives each layer its own as that writes, to one thread while others wait.
        Small steps take some pages ahead, one after the other, so that the next prompt finds them.

        Args:
            slot_T: the places that the step writes.
        """
        if self._kernels is None or len(slot_T) == 0:
            return
        end = int(slot_T.max()) // self.page_size + 1
        if end <= self._num_populated and len(slot_T) < self.page_size:
            ahead = -(-_TOKENS_AHEAD // self.page_size)
            end = min(self._num_populated + 1, end + ahead, self.num_pages)
        if end > self._num_populated:
            self._kernels.populate(self.kv_L2PGSK, self._num_populated, end)
            self._num_populated = end

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int], to: "KvPool") -> None:
        """Copy pages into a pool, maybe this one. All are read before any is written."""
        device = self.kv_L2PGSK.device
        is_apart = to is not self or set(sources).isdisjoint(targets)
        if device.type == to.kv_L2PGSK.device.type == "cpu" and is_apart:
            # One by one is faster there, and needs no memory in between.
            for source, target in zip(sources, targets, strict=True):
                to.kv_L2PGSK[:, :, target].copy_(self.kv_L2PGSK[:, :, source])
            return
        pages = self.kv_L2PGSK.index_select(2, torch.tensor(sources, device=device))
        target_P = torch.tensor(targets, device=to.kv_L2PGSK.device)
        to.kv_L2PGSK.index_copy_(2, target_P, pages.to(to.kv_L2PGSK.device))


def scale_bytes(dtype: torch.dtype) -> int:
    """Return the bytes that a token's keys, and its values, take in a head besides its numbers."""
    return KV_SCALE_BYTES if dtype == torch.int8 else 0
