"""Attention: the one door between models and kernels.

`kv=None` attends within the sequences given, and is differentiable; `kv=PagedLayer` appends the new
keys and values to their sequences' pages and attends to those. So one model file trains and serves
(ADR 0002).

Dims: B sequences, L positions, T new tokens of all sequences, H query heads, G key/value heads,
K head dim, P pages, S places in a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from alpage.errors import InvalidValue, Unsupported
from alpage.ops.kv import KvPool, PagedStep


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What a backend is asked to be able to do.

    Attributes:
        dtype: of queries, and of keys and values as they come.
        kv_dtype: of the pages; int8 ones have scales (ADR 0017).
    """

    device: str
    dtype: torch.dtype
    kv_dtype: torch.dtype
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int


class Backend(Protocol):
    """A way to compute attention over pages.

    How it orders the numbers within a head's tile [S, K] of a page is its own affair (ADR 0005);
    pages are moved whole.
    """

    @property
    def name(self) -> str:
        """What a user calls it."""

    def supports(self, spec: AttentionSpec) -> str | None:
        """Return why it cannot do this, or None if it can."""

    def plan(self, step: PagedStep, page_size: int) -> Any:
        """Return what can be worked out once a step, for all layers."""

    def attend(self, q_THK: Tensor, layer: "PagedLayer", window: int | None) -> Tensor:
        """Return out_THK: every query over the pages of its sequence, scaled by 1/sqrt(K).

        The keys and values of the new tokens are in the pages already. With a window, only the last
        `window` positions up to the query's own are seen.
        """

    def store(self, k_TGK: Tensor, v_TGK: Tensor, layer: "PagedLayer") -> None:
        """Write keys and values of the new tokens into their places."""


@final
@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One layer's pages, keys then values, in one step; only their backend knows their order."""

    kv_2PGSK: Tensor
    step: PagedStep
    plan: Any
    backend: Backend


@final
class PagedKV:
    """The past of all sequences of a step, layer by layer."""

    def __init__(self, pool: KvPool, step: PagedStep, backend: Backend) -> None:
        self.pool = pool
        self.step = step
        self._backend = backend
        self._plan = backend.plan(step, pool.page_size) if step.num_queries else None

    def __getitem__(self, layer: int) -> PagedLayer:
        return PagedLayer(self.pool.layers[layer], self.step, self._plan, self._backend)


def attention(
    q: Tensor, k: Tensor, v: Tensor, kv: PagedLayer | None, *, window: int | None = None
) -> Tensor:
    """Causal attention, scaled by 1/sqrt(K); query head h uses key/value head h // (H / G).

    Args:
        q: q_BLHK without kv, q_THK with it; rows behind the step's tokens are padding, and give
            zeros.
        k: k_BLGK or k_TGK.
        v: like k.
        kv: the pages to append to and to attend to; None: attend within the L positions given.
        window: see only the last `window` positions; None: all.

    Returns:
        A tensor of q's shape.
    """
    if has_torch_function_unary(q):
        return handle_torch_function(attention, (q,), q, k, v, kv, window=window)
    if kv is None:
        return _dense(q, k, v, window)
    num_tokens = len(kv.step.slot_T)
    if num_tokens < len(q):
        out = torch.zeros_like(q)
        out[:num_tokens] = attention(
            q[:num_tokens], k[:num_tokens], v[:num_tokens], kv, window=window
        )
        return out
    if num_tokens == 0:
        return q
    kv.backend.store(k, v, kv)
    return kv.backend.attend(q, kv, window)


def scale_of(q_THK: Tensor) -> float:
    """Return what scores are multiplied with: 1/sqrt(K)."""
    return float(q_THK.shape[-1] ** -0.5)


def _dense(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, window: int | None) -> Tensor:
    q_BHLK, k_BGLK, v_BGLK = (x.transpose(1, 2) for x in (q_BLHK, k_BLGK, v_BLGK))
    mask_LL = None
    if window is not None:
        positions_L = torch.arange(q_BHLK.shape[2], device=q_BHLK.device)
        mask_LL = is_visible(positions_L, positions_L, window)
    out_BHLK = F.scaled_dot_product_attention(
        q_BHLK, k_BGLK, v_BGLK, attn_mask=mask_LL, is_causal=mask_LL is None, enable_gqa=True
    )
    return out_BHLK.transpose(1, 2)


def is_visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Whether each query position sees each key position: bool [..., queries, keys]."""
    distance = query_positions[..., :, None] - key_positions
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def select(spec: AttentionSpec, backends: Sequence[Backend], name: str = "auto") -> Backend:
    """Return the first backend that can do it, or the one of that name.

    Raises:
        InvalidValue: there is no backend of that name.
        Unsupported: none, or not the one of that name, can do it.
    """
    candidates = [backend for backend in backends if name in ("auto", backend.name)]
    if not candidates:
        raise InvalidValue(
            field="attention_backend",
            value=name,
            limit="there is no such backend; there are " + ", ".join(b.name for b in backends),
            remedy='Choose one of them, or "auto"',
        )
    reasons = []
    for backend in candidates:
        reason = backend.supports(spec)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise Unsupported(
        field="attention_backend",
        value=name,
        limit="cannot serve this model here (" + "; ".join(reasons) + ")",
        remedy='Choose attention_backend="auto" or "reference"',
    )
