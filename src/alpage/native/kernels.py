"""Kernels: the C++ kernels as functions of tensors.

Shapes: T new tokens of the step, B sequences, H query heads, G key/value heads, K head dim,
P pages, S tokens in a page; B1 is B + 1, and the 2 of a layer's pool is keys and values. A pool of
int8 has the bytes of a token's float32 scale in its K besides.
"""

from contextlib import suppress
from ctypes import CDLL, c_void_p, cast
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol, final

import torch
from torch import Tensor

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Step(Protocol):
    """Which tokens of a flat step belong to which sequence, and where their keys and values lie."""

    @property
    def query_start_B1(self) -> Tensor:
        """int32: first new token of each sequence, then their number."""

    @property
    def context_B(self) -> Tensor:
        """int32: tokens in the pool, those of this step included."""

    @property
    def table_BP(self) -> Tensor:
        """int32: pages of each sequence, in the order of its tokens."""

    @property
    def slot_T(self) -> Tensor:
        """int64: page * page size + place of each new token."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The kernels for one instruction set.

    Results do not depend on the number of threads, nor a row's on what else is in the step.

    Attributes:
        module: the compiled module.
        isa: the instruction set, one of `module.isas()`.
    """

    module: ModuleType
    isa: str

    def unsupported_reason(self, *, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why attention over such a pool is beyond these kernels; None where it is not."""
        if dtype not in DTYPES:
            return f"the native kernels know float32 and bfloat16, not {dtype}"
        if head_dim % 8 or not 16 <= head_dim <= 256:
            return (
                f"the native kernels know multiples of 8 in [16, 256] as head dim, not {head_dim}"
            )
        return None

    def store_kv(self, k_TGK: Tensor, v_TGK: Tensor, kv_2PGSK: Tensor, slot_T: Tensor) -> None:
        """Write new keys and values into one layer's pool.

        Args:
            k_TGK: new keys; any strides, but heads must be dense.
            v_TGK: new values; likewise.
            kv_2PGSK: the layer's pool, of the same dtype or int8; pages must be dense.
            slot_T: int64, page * page size + place.

        Raises:
            IndexError: a slot lies outside of the pool. Nothing is written then.
        """
        _, num_pages, num_kv_heads, page_size, _ = kv_2PGSK.shape
        head_dim = k_TGK.shape[2]
        shape = (slot_T.shape[0], num_kv_heads, head_dim)
        assert k_TGK.shape == v_TGK.shape == shape
        assert k_TGK.dtype == v_TGK.dtype
        assert k_TGK.stride(2) == v_TGK.stride(2) == 1
        assert slot_T.dtype == torch.int64
        assert slot_T.is_contiguous()
        k_pages, v_pages, page_stride = _pages(kv_2PGSK)
        self.module.store_kv(
            dtype=DTYPES[k_TGK.dtype],
            is_int8=self._is_int8(kv_2PGSK, k_TGK),
            k_TGK=k_TGK.data_ptr(),
            v_TGK=v_TGK.data_ptr(),
            k_PGSK=k_pages,
            v_PGSK=v_pages,
            slot_T=slot_T.data_ptr(),
            k_token_stride=k_TGK.stride(0),
            k_head_stride=k_TGK.stride(1),
            v_token_stride=v_TGK.stride(0),
            v_head_stride=v_TGK.stride(1),
            page_stride=page_stride,
            num_tokens=shape[0],
            num_pages=num_pages,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            num_threads=torch.get_num_threads(),
            isa=self.isa,
        )

    def populate(self, kv_L2PGSK: Tensor, first: int, end: int) -> None:
        """Have the system give the memory of pages [first, end) now, to all threads at once.

        What they hold stays as it is.

        Args:
            kv_L2PGSK: the pool of all L layers; pages must be dense.
            first: the first of the pages.
            end: the one behind the last.
        """
        pages_PGSK = kv_L2PGSK[0, 0, first:end]
        self.module.populate(
            begin=pages_PGSK.data_ptr(),
            stride=kv_L2PGSK.stride(1) * kv_L2PGSK.element_size(),
            num_regions=len(kv_L2PGSK) * 2,
            num_bytes=pages_PGSK.nbytes,
            num_threads=torch.get_num_threads(),
        )

    def has_pairs(self, *, dtype: torch.dtype, page_size: int, head_dim: int) -> bool:
        """Whether the tiles of such a pool lie in pairs (attention.h), which only kernels read."""
        return bool(self.module.has_pairs(self.isa, DTYPES[dtype], page_size, head_dim))

    def paged_attention(
        self,
        q_THK: Tensor,
        kv_2PGSK: Tensor,
        step: Step,
        *,
        scale: float,
        window: int | None = None,
        out_THK: Tensor | None = None,
    ) -> Tensor:
        """Attend causally from each new token to its sequence's pages.

        This is the PagedAttention of Kwon et al. 2023, section 4.1, for prompts and decodes alike.

        Args:
            q_THK: queries; any strides, but heads must be dense.
            kv_2PGSK: one layer's pool, of the same dtype or int8, with this step's keys and values
                written.
            step: the step's flat form.
            scale: factor of the scores, above 0.
            window: keys that a query sees, its own included; None for all.
            out_THK: where to write; a new tensor if None.

        Returns:
            out_THK.

        Raises:
            IndexError: the step points outside of the pool, its own tables or `q_THK`.
        """
        out_THK = torch.empty(q_THK.shape, dtype=q_THK.dtype) if out_THK is None else out_THK
        _, num_pages, num_kv_heads, page_size, _ = kv_2PGSK.shape
        num_tokens, num_heads, head_dim = q_THK.shape
        query_start_B1, context_B, table_BP = step.query_start_B1, step.context_B, step.table_BP
        num_sequences, table_width = table_BP.shape
        assert q_THK.dtype == out_THK.dtype
        assert out_THK.shape == q_THK.shape == (num_tokens, num_heads, head_dim)
        assert q_THK.stride(2) == out_THK.stride(2) == table_BP.stride(1) == 1
        assert query_start_B1.shape == (num_sequences + 1,)
        assert context_B.shape == (num_sequences,)
        assert query_start_B1.dtype == context_B.dtype == table_BP.dtype == torch.int32
        assert query_start_B1.stride(0) == context_B.stride(0) == 1
        k_pages, v_pages, page_stride = _pages(kv_2PGSK)
        self.module.paged_attention(
            dtype=DTYPES[q_THK.dtype],
            is_int8=self._is_int8(kv_2PGSK, q_THK),
            q_THK=q_THK.data_ptr(),
            out_THK=out_THK.data_ptr(),
            k_PGSK=k_pages,
            v_PGSK=v_pages,
            query_start_B1=query_start_B1.data_ptr(),
            context_B=context_B.data_ptr(),
            table_BP=table_BP.data_ptr(),
            q_token_stride=q_THK.stride(0),
            q_head_stride=q_THK.stride(1),
            out_token_stride=out_THK.stride(0),
            out_head_stride=out_THK.stride(1),
            page_stride=page_stride,
            table_stride=table_BP.stride(0),
            num_tokens=num_tokens,
            num_pages=num_pages,
            table_width=table_width,
            num_sequences=num_sequences,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            window=window,
            scale=scale,
            num_threads=torch.get_num_threads(),
            isa=self.isa,
        )
        return out_THK

    def num_splits(
        self,
        step: Step,
        *,
        heads: tuple[int, int],
        num_pages: int,
        page_size: int,
        window: int | None = None,
    ) -> int:
        """Count the runs of 128 keys of a head that `paged_attention` reads for a step.

        One on pages that several sequences share, and which is read for them together, counts once.

        Args:
            step: as `paged_attention` takes it.
            heads: query heads, and key/value heads.
            num_pages: of the pool.
            page_size: tokens in each.
            window: keys that a query sees; None for all.
        """
        num_heads, num_kv_heads = heads
        num_sequences, table_width = step.table_BP.shape
        return int(
            self.module.num_splits(
                query_start_B1=step.query_start_B1.data_ptr(),
                context_B=step.context_B.data_ptr(),
                table_BP=step.table_BP.data_ptr(),
                table_stride=step.table_BP.stride(0),
                table_width=table_width,
                num_tokens=int(step.query_start_B1[-1]),
                num_pages=num_pages,
                num_sequences=num_sequences,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                page_size=page_size,
                window=window,
            )
        )

    def _is_int8(self, kv_2PGSK: Tensor, x_THK: Tensor) -> bool:
        """Whether a pool is of 8 bits; its dtype and width must be those of heads like these."""
        is_int8 = kv_2PGSK.dtype == torch.int8
        scale_bytes = self.module.scale_bytes if is_int8 else 0
        assert is_int8 or kv_2PGSK.dtype == x_THK.dtype
        assert kv_2PGSK.shape[-1] == x_THK.shape[-1] + scale_bytes
        return is_int8


def load(isa: str | None = None) -> Kernels | None:
    """Give the kernels, or None where they were not built or cannot be loaded.

    Args:
        isa: an instruction set by name; the best that this machine has if None.
    """
    module = import_kernels()
    if isinstance(module, str):
        return None
    assert isa is None or isa in module.isas()
    return Kernels(module=module, isa=module.isa() if isa is None else isa)


def unavailable_reason() -> str | None:
    """Say in one sentence, without its full stop, why `load` gives None; None where it does not."""
    module = import_kernels()
    return module if isinstance(module, str) else None


@cache
def import_kernels() -> ModuleType | str:
    """Return the compiled module, or why there is none."""
    try:
        module = import_module("alpage.native._kernels")
    except ModuleNotFoundError:
        return (
            "the native kernels were not built when alpage was installed: "
            "install it again with a C++ compiler and Python's headers at hand"
        )
    except ImportError as error:
        return f"the native kernels cannot be loaded: {error}"
    entry = _openmp_entry()
    if entry is None:
        return "the native kernels cannot be loaded: torch has loaded no OpenMP runtime they know"
    module.use_openmp(entry)
    return module


def _openmp_entry() -> int | None:
    """Return where the OpenMP runtime that torch has loaded starts a team."""
    # One put before all libraries is torch's too. Else torch's own, which only some builds of torch
    # show to libraries that it does not load itself: those for ARM do not.
    for path in (None, import_module("torch._C").__file__):
        with suppress(AttributeError):
            return cast(CDLL(path).GOMP_parallel, c_void_p).value
    return None


def _pages(kv_2PGSK: Tensor) -> tuple[int, int, int]:
    """Addresses of the first page of keys and of values; elements from page to page."""
    assert kv_2PGSK.is_contiguous()
    first = kv_2PGSK.data_ptr()
    value_stride, page_stride, *_ = kv_2PGSK.stride()
    return first, first + value_stride * kv_2PGSK.element_size(), page_stride
