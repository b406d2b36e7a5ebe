"""Experts: feed-forwards of which a router picks a few for every token.

The router's scores of a token's experts, softmax over the picked ones alone, weigh their sum
(Shazeer et al. 2017, arXiv:1701.06538, section 2.1). Nothing is dropped: an expert takes however
many tokens pick it.

Dims: T tokens, D model, F feed-forward, N experts, A experts that a token runs through, P = T A
pairs of a token and one of its experts, n tokens of one expert.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpage.models.layers import Layer, Linear
from alpage.models.quantize import scaled_product
from alpage.ops.rows import silu_mul
from alpage.partition import Parts, Sharder
from alpage.workload import ModelShape


@final
class RoutedMLP(nn.Module):
    """x_...D -> x_...D: a router, and experts that are down(silu(gate) * up) each."""

    def __init__(self, shape: ModelShape, sharder: Sharder) -> None:
        super().__init__()
        self.sharder = sharder
        self.num_experts = shape.num_experts
        self.num_active = shape.num_active_experts
        embed, gate = ("E", shape.d_model), ("F", shape.d_ff)
        self.router = Linear((embed,), (("-", shape.num_experts),), sharder)
        self.gate_up = ExpertLinear(shape.num_experts, (embed,), (gate, gate), sharder)
        self.down = ExpertLinear(shape.num_experts, (gate,), (embed,), sharder)

    def forward(self, x: Tensor) -> Tensor:
        """Sort pairs by expert, run each expert once over its tokens, add up where they belong."""
        x = self.sharder.constrain(x, "block input")
        x_TD = x.flatten(0, -2)
        weight_TA, expert_TA = self._route(x_TD)
        expert_P = expert_TA.flatten()
        order_P = expert_P.argsort(stable=True)
        token_P = order_P // self.num_active
        # Sizes are the host's business: on a GPU this waits for the router.
        num_tokens_N = expert_P.bincount(minlength=self.num_experts).tolist()
        both_PF = self.gate_up(x_TD.index_select(0, token_P), num_tokens_N)
        constrain = self.sharder.constrain
        both_P2F = constrain(both_PF.unflatten(-1, (2, -1)), "hidden, partial")
        hidden_PF = constrain(silu_mul(both_P2F), "hidden")
        weight_P1 = weight_TA.flatten()[order_P, None]
        out_PD = (self.down(hidden_PF, num_tokens_N) * weight_P1).to(x.dtype)
        out_TD = torch.zeros_like(x_TD).index_add(0, token_P, out_PD)
        return constrain(out_TD.view_as(x), "block output")

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight_TA, which add up to 1 and are float32 at least, and expert_TA."""
        score_TN = self.sharder.constrain(self.router(x_TD), "router")
        score_TA, expert_TA = score_TN.topk(self.num_active)
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        return score_TA.softmax(-1, dtype=dtype), expert_TA


@final
class ExpertLinear(Layer):
    """A matrix for every expert. The weight is N matrices of as many rows as features out."""

    def __init__(self, num_experts: int, columns: Parts, rows: Parts, sharder: Sharder) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        num_in, num_out = (sum(size for _, size in parts) for parts in (columns, rows))
        self.weight = nn.Parameter(torch.empty(num_experts, num_out, num_in))
        self.bias = None
        self._sharder = sharder

    def forward(self, x_PD: Tensor, num_tokens_N: list[int]) -> Tensor:
        """Multiply each expert's rows with its matrix; those that have none are not touched."""
        weight_NFD = self._sharder.weight(self.weight, self.rows, self.columns)
        x_NnD = torch.split(x_PD, num_tokens_N)
        present = [(n, x_nD) for n, x_nD in enumerate(x_NnD) if len(x_nD)]
        if self.scale is None:
            return torch.cat([F.linear(x_nD, weight_NFD[n]) for n, x_nD in present])
        scale_NF = self.scale
        return torch.cat([scaled_product(x_nD, weight_NFD[n], scale_NF[n]) for n, x_nD in present])

    @property
    def is_quantizable(self) -> bool:
        """All of them."""
        return True
