"""Collective: one step that turns a sharding into another, and the bytes it moves."""

from dataclasses import dataclass
from typing import Literal, final

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "slice", "permute"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One step of all ranks, run by every group of ranks that differ in `axes` only.

    A group's ranks are numbered along `axes`, the first one major. Where axes leave or enter a dim,
    they do so at its end, in the order they have in `axes`.

    ==============  ===============================================================================
    all_gather      Each axis leaves its dim; a rank concatenates the shards of its group.
    reduce_scatter  Summands along the axes are added, and each axis enters its dim: a rank keeps
                    its shard of the sum.
    all_reduce      Summands along the axes are added.
    all_to_all      The axes leave one dim and enter another: a rank cuts its shard along `to_dim`,
                    sends one piece to each of its group and concatenates what it gets.
    slice           Each axis enters its dim: a rank keeps its shard. Nothing is sent.
    permute         The axes of one dim, somewhere in a row, take the order `to_axes`: a rank sends
                    its shard to the rank whose number along `to_axes` is its own along `axes`.
    ==============  ===============================================================================

    Attributes:
        kind: what is done.
        axes: mesh axes that take part.
        dims: for each axis, the tensor's dim that it leaves or enters; empty for an all-reduce.
        to_dim: the dim that the axes of an all-to-all enter.
        to_axes: the axes in their new order, for a permute.
        payload_bytes: what a rank has to do with, as the paper counts it: the output of an
            all-gather, the input of a reduce-scatter, twice the tensor of an all-reduce, the shard
            of an all-to-all or permute (Pope et al. 2022, arXiv:2211.05102, appendix A).
        wire_bytes: what a rank sends when its group of K ranks forms a ring: (K - 1) / K of the
            payload, rounded up where an all-reduce does not divide; a permute's whole payload.
    """

    kind: Kind
    axes: tuple[str, ...]
    dims: tuple[int, ...] = ()
    to_dim: int | None = None
    to_axes: tuple[str, ...] = ()
    payload_bytes: int
    wire_bytes: int

    def __str__(self) -> str:
        """Return a line such as "all_to_all(yz) dim 0 to 1"."""
        text = f"{self.kind}({''.join(self.axes)})"
        if self.dims:
            text += f" dim {','.join(map(str, dict.fromkeys(self.dims)))}"
        if self.to_dim is not None:
            text += f" to {self.to_dim}"
        return f"{text} as {''.join(self.to_axes)}" if self.to_axes else text
