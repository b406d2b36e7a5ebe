"""SDPA: paged attention by gathering pages and calling PyTorch's own attention.

Runs wherever PyTorch runs; a gather costs an extra copy of the keys and values, which a kernel that
reads pages does without.

Dims as in `attention`; D sequences of one bucket, C padded context, n queries of one sequence.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from alpage.ops.attention import AttentionSpec, PagedLayer, is_visible
from alpage.ops.kv import PagedStep
from alpage.ops.reference import divmod_, gather


@final
@dataclass(frozen=True, slots=True)
class _Bucket:
    """Sequences with one query each and contexts of like length, attended to together."""

    token_D: Tensor  # their query's place among all tokens
    table_DP: Tensor
    last_D: Tensor  # their query's position


@final
@dataclass(frozen=True, slots=True)
class _Plan:
    page_T: Tensor
    place_T: Tensor
    buckets: tuple[_Bucket, ...]
    # For each sequence with several queries: its number, its first token, its number of tokens.
    prefills: tuple[tuple[int, int, int], ...]


@final
class Sdpa:
    """`scaled_dot_product_attention` over gathered pages."""

    name = "sdpa"

    def supports(self, spec: AttentionSpec) -> str | None:
        """Everything but pages of 8 bits."""
        if spec.kv_dtype != spec.dtype:
            return f"sdpa keeps keys and values as they come, in {spec.dtype}, not {spec.kv_dtype}"
        return None

    def plan(self, step: PagedStep, page_size: int) -> _Plan:
        """Put sequences with one query into buckets by the power of two of their pages."""
        buckets: dict[int, list[int]] = {}
        prefills = []
        starts = []
        start = 0
        for b, (num_queries, context) in enumerate(
            zip(step.num_queries, step.contexts, strict=True)
        ):
            starts.append(start)
            if num_queries == 1:
                buckets.setdefault((-(-context // page_size) - 1).bit_length(), []).append(b)
            else:
                prefills.append((b, start, num_queries))
            start += num_queries
        page_T, place_T = divmod_(step.slot_T, page_size)
        return _Plan(
            page_T,
            place_T,
            tuple(_bucket(step, rows, starts, page_size) for rows in buckets.values()),
            tuple(prefills),
        )

    def store(self, k_TGK: Tensor, v_TGK: Tensor, layer: PagedLayer) -> None:
        """Write keys and values into their places."""
        plan: _Plan = layer.plan
        k_PGSK, v_PGSK = layer.kv_2PGSK
        k_PGSK[plan.page_T, :, plan.place_T] = k_TGK
        v_PGSK[plan.page_T, :, plan.place_T] = v_TGK

    def attend(self, q_THK: Tensor, layer: PagedLayer, window: int | None) -> Tensor:
        """Attend bucket by bucket, then sequence by sequence where there are several queries."""
        plan: _Plan = layer.plan
        out_THK = torch.empty_like(q_THK)
        for bucket in plan.buckets:
            k_DGCK, v_DGCK = (
                pages_PGSK[bucket.table_DP].transpose(1, 2).flatten(2, 3)
                for pages_PGSK in layer.kv_2PGSK
            )
            positions_C = torch.arange(k_DGCK.shape[2], device=q_THK.device)
            mask_DC = is_visible(bucket.last_D, positions_C, window)
            out_DH1K = F.scaled_dot_product_attention(
                q_THK[bucket.token_D][:, :, None],
                k_DGCK,
                v_DGCK,
                attn_mask=mask_DC[:, None, None],
                enable_gqa=True,
            )
            out_THK[bucket.token_D] = out_DH1K[:, :, 0]
        for b, start, num_queries in plan.prefills:
            tokens = slice(start, start + num_queries)
            out_THK[tokens] = self._attend_one(q_THK[tokens], layer, b, window)
        return out_THK

    def _attend_one(self, q_nHK: Tensor, layer: PagedLayer, b: int, window: int | None) -> Tensor:
        context = layer.step.contexts[b]
        table_P = layer.step.table_BP[b]
        k_GCK, v_GCK = (gather(pages_PGSK, table_P, context) for pages_PGSK in layer.kv_2PGSK)
        is_whole = len(q_nHK) == context and window is None
        mask_nC = None
        if not is_whole:
            positions_C = torch.arange(context, device=q_nHK.device)
            mask_nC = is_visible(positions_C[-len(q_nHK) :], positions_C, window)
        out_HnK = F.scaled_dot_product_attention(
            q_nHK.transpose(0, 1)[None],
            k_GCK[None],
            v_GCK[None],
            attn_mask=mask_nC,
            is_causal=is_whole,
            enable_gqa=True,
        )[0]
        return out_HnK.transpose(0, 1)


def _bucket(step: PagedStep, rows: list[int], starts: list[int], page_size: int) -> _Bucket:
    device = step.table_BP.device
    row_D = torch.tensor(rows, device=device)
    num_pages = max(-(-step.contexts[b] // page_size) for b in rows)
    return _Bucket(
        torch.tensor([starts[b] for b in rows], device=device),
        step.table_BP[row_D, :num_pages],
        step.context_B[row_D] - 1,
    )
