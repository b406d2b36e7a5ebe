"""CPU: paged attention by our own kernels, which read the pages where they lie.

Dims as in `attention`.
"""

from typing import final

from torch import Tensor

from alpage import native
from alpage.ops.attention import AttentionSpec, PagedLayer, scale_of
from alpage.ops.kv import PagedStep


@final
class Native:
    """The C++ kernels, if they were built when alpage was installed."""

    name = "native"

    def __init__(self) -> None:
        self._kernels = native.load()

    def supports(self, spec: AttentionSpec) -> str | None:
        """CPUs, and the dtypes and head dims that the kernels know; pages of these or int8."""
        if self._kernels is None:
            return native.unavailable_reason()
        if spec.device != "cpu":
            return f"the native kernels run on CPUs, not on {spec.device}"
        return self._kernels.unsupported_reason(dtype=spec.dtype, head_dim=spec.head_dim)

    def plan(self, step: PagedStep, page_size: int) -> None:
        """Nothing is worked out ahead."""

    def store(self, k_TGK: Tensor, v_TGK: Tensor, layer: PagedLayer) -> None:
        """Write keys and values into their places."""
        assert self._kernels is not None, "a backend is asked what it supports before it runs"
        self._kernels.store_kv(k_TGK, v_TGK, layer.kv_2PGSK, layer.step.slot_T)

    def attend(self, q_THK: Tensor, layer: PagedLayer, window: int | None) -> Tensor:
        """Attend to the pages in place."""
        assert self._kernels is not None, "a backend is asked what it supports before it runs"
        return self._kernels.paged_attention(
            q_THK, layer.kv_2PGSK, layer.step, scale=scale_of(q_THK), window=window
        )
