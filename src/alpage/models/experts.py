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

from alpage.models.layers import Linear
from alpage.workload import ModelShape


@final
class RoutedMLP(nn.Module):
    """x_...D -> x_...D: a router, and experts that are down(silu(gate) * up) each."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.num_active = shape.num_active_experts
        self.router = Linear(shape.d_model, shape.num_experts)
        self.gate_up = ExpertLinear(shape.num_experts, shape.d_model, 2 * shape.d_ff)
        self.down = ExpertLinear(shape.num_experts, shape.d_ff, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Sort pairs by expert, run each expert once over its tokens, add up where they belong."""
        x_TD = x.flatten(0, -2)
        weight_TA, expert_TA = self._route(x_TD)
        expert_P = expert_TA.flatten()
        order_P = expert_P.argsort(stable=True)
        token_P = order_P // self.num_active
        # Sizes are the host's business: on a GPU this waits for the router.
        num_tokens_N = expert_P.bincount(minlength=len(self.router.weight)).tolist()
        x_NnD = torch.split(x_TD.index_select(0, token_P), num_tokens_N)
        outs = [self._expert(expert, x_nD) for expert, x_nD in enumerate(x_NnD) if len(x_nD)]
        weight_P1 = weight_TA.flatten()[order_P, None]
        out_PD = (torch.cat(outs) * weight_P1).to(x.dtype)
        return torch.zeros_like(x_TD).index_add(0, token_P, out_PD).view_as(x)

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight_TA, which add up to 1 and are float32 at least, and expert_TA."""
        score_TA, expert_TA = self.router(x_TD).topk(self.num_active)
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        return score_TA.softmax(-1, dtype=dtype), expert_TA

    def _expert(self, expert: int, x_nD: Tensor) -> Tensor:
        gate_nF, up_nF = self.gate_up(x_nD, expert).chunk(2, dim=-1)
        return self.down(F.silu(gate_nF) * up_nF, expert)  # type: ignore[no-any-return]


@final
class ExpertLinear(nn.Module):
    """A matrix for every expert. The weight is N matrices of as many rows as features out."""

    def __init__(self, num_experts: int, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, num_out, num_in))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Multiply with one expert's."""
        return F.linear(x, self.weight[expert])
