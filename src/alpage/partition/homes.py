"""Homes: sequences that each have one rank to attend for them, however long they are.

A flat step has more tokens of some sequences than of others, so equal shards do not do. Around
attention, tokens go from all ranks, which have some heads of each, to their homes, which have all
of these heads, and back (Pope et al. 2022, arXiv:2211.05102, section 3.3). Keys and values stay at
home.

Dims: T tokens of a step, H query heads, G key/value heads, K head dim.
"""

from typing import final

import torch
from torch import Tensor

from alpage.hardware import Mesh
from alpage.layout import Attention
from alpage.partition.collectives import Collectives


@final
class Homes:
    """One rank's side.

    Args:
        attention: over heads.
        num_kv_heads: of the model.
        mesh: the ranks.
        collectives: of this rank.
        axes: mesh axes whose ranks are homes, the last of those that cut the heads.

    Attributes:
        num_tokens: that each home has of this step, in the order of the axes.
    """

    def __init__(
        self,
        attention: Attention,
        num_kv_heads: int,
        mesh: Mesh,
        collectives: Collectives,
        axes: tuple[str, ...],
    ) -> None:
        heads = attention.queries().dims[1].axes
        assert heads[len(heads) - len(axes) :] == axes, "homes take the last axes of the heads"
        self.num_tokens = [0] * mesh.size(axes)
        self._axes = axes
        kv_heads = attention.kv(num_kv_heads, mesh).dims[1].axes
        self._kv_axes = tuple(axis for axis in axes if axis in kv_heads)
        self._collectives = collectives
        self._home_of = [mesh.group(rank, axes).index(rank) for rank in range(mesh.num_ranks)]

    def mine(self, x_T: Tensor) -> Tensor:
        """Return what the tokens that are at home here have."""
        return torch.split(x_T, self.num_tokens)[self._here]

    def queries(self, x_THK: Tensor) -> Tensor:
        """Return all heads of the tokens at home here, of which x has some heads of all tokens."""
        return self._enter(x_THK, self._axes)

    def keys_and_values(self, x_TGK: Tensor) -> Tensor:
        """Like queries; heads that are not cut over an axis are here already."""
        return self._enter(x_TGK, self._kv_axes)

    def attended(self, x_THK: Tensor) -> Tensor:
        """Return some heads of all tokens, of which x has all heads of those at home here."""
        pieces = x_THK.chunk(len(self.num_tokens), dim=-2)
        return torch.cat(self._collectives.exchange(pieces, self._axes, self.num_tokens))

    def _enter(self, x_THK: Tensor, axes: tuple[str, ...]) -> Tensor:
        parts = torch.split(x_THK, self.num_tokens)
        pieces = [parts[self._home_of[rank]] for rank in self._collectives.group(axes)]
        num_here = [self.num_tokens[self._here]] * len(pieces)
        return torch.cat(self._collectives.exchange(pieces, axes, num_here), dim=-2)

    @property
    def _here(self) -> int:
        return self._home_of[self._collectives.rank]
