"""Reference: paged attention in the fewest words; what every other backend is compared with.

Dims as in `attention`; C context positions, R query heads that share a key/value head (H = G R).
"""

from typing import final

import torch
from torch import Tensor

from alpage.ops.attention import AttentionSpec, PagedLayer, is_visible
from alpage.ops.kv import PagedStep
from alpage.workload import KV_SCALE_BYTES


@final
class Reference:
    """One sequence after the other, in float32, any device, any shape."""

    name = "reference"

    def supports(self, spec: AttentionSpec) -> str | None:  # noqa: ARG002
        """Everything."""
        return None

    def plan(self, step: PagedStep, page_size: int) -> None:
        """Nothing is worked out ahead."""

    def store(self, k_TGK: Tensor, v_TGK: Tensor, layer: PagedLayer) -> None:
        """Write keys and values into their places."""
        k_PGSK, v_PGSK = layer.kv_2PGSK
        page_T, place_T = divmod_(layer.step.slot_T, k_PGSK.shape[2])
        is_int8 = k_PGSK.dtype == torch.int8
        for x_PGSK, x_TGK in ((k_PGSK, k_TGK), (v_PGSK, v_TGK)):
            x_PGSK[page_T, :, place_T] = rounded(x_TGK) if is_int8 else x_TGK

    def attend(self, q_THK: Tensor, layer: PagedLayer, window: int | None) -> Tensor:
        """softmax(q k / sqrt(K)) v over the pages of each sequence."""
        step, (k_PGSK, v_PGSK) = layer.step, layer.kv_2PGSK
        outs = []
        for b, q_nHK in enumerate(torch.split(q_THK.float(), list(step.num_queries))):
            context = step.contexts[b]
            k_GCK, v_GCK = (
                widened(gather(pages_PGSK, step.table_BP[b], context))
                for pages_PGSK in (k_PGSK, v_PGSK)
            )
            q_nGRK = q_nHK.view(len(q_nHK), len(k_GCK), -1, q_nHK.shape[-1])
            scores_GRnC = torch.einsum("ngrk,gck->grnc", q_nGRK, k_GCK) * q_THK.shape[-1] ** -0.5
            positions_C = torch.arange(context, device=q_THK.device)
            visible_nC = is_visible(positions_C[-len(q_nHK) :], positions_C, window)
            weights_GRnC = scores_GRnC.masked_fill(~visible_nC, -torch.inf).softmax(-1)
            outs.append(torch.einsum("grnc,gck->ngrk", weights_GRnC, v_GCK).flatten(1, 2))
        return torch.cat(outs).to(q_THK.dtype)


def gather(pages_PGSK: Tensor, table_P: Tensor, context: int) -> Tensor:
    """Return x_GCK: the first `context` places of a page table, in order."""
    num_pages = -(-context // pages_PGSK.shape[2])
    return pages_PGSK[table_P[:num_pages]].transpose(0, 1).flatten(1, 2)[:, :context]


def rounded(x_TGK: Tensor) -> Tensor:
    """Return numbers of 8 bits and behind them the bytes of their token's and head's scale.

    A scale times 127 is the greatest magnitude. Where that is not finite, or too small to divide
    by, all numbers are 0, and the scale says which it was.
    """
    x_TGK = x_TGK.float()
    scale_TG1 = x_TGK.abs().amax(-1, keepdim=True) / 127
    inverse_TG1 = 1 / scale_TG1
    is_usable_TG1 = scale_TG1.isfinite() & inverse_TG1.isfinite()
    number_TGK = torch.where(is_usable_TG1, (x_TGK * inverse_TG1).round(), 0).to(torch.int8)
    return torch.cat([number_TGK, scale_TG1.view(torch.int8)], dim=-1)


def widened(x_GCK: Tensor) -> Tensor:
    """Return keys or values in float32, by their scales if they have 8 bits; undoes `rounded`."""
    if x_GCK.dtype != torch.int8:
        return x_GCK.float()
    number_GCK = x_GCK[..., :-KV_SCALE_BYTES]
    return number_GCK * x_GCK[..., -KV_SCALE_BYTES:].contiguous().view(torch.float32)


def divmod_(slot_T: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """Return the page and the place in it of each slot."""
    page_T = torch.div(slot_T, page_size, rounding_mode="floor")
    return page_T, slot_T - page_T * page_size
