"""Collectives: a planned collective carried out on this rank's shard, and its bytes counted."""

from collections import Counter
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from alpage.hardware import Mesh
from alpage.layout import Collective
from alpage.partition.communicator import Communicator, Ranks


@final
class Collectives:
    """Carries out collectives on one rank.

    Args:
        mesh: the ranks.
        communicator: this rank's side.

    Attributes:
        payload_bytes: by kind of collective, what was counted as `Collective.payload_bytes` is,
            but of the tensors that were there.
    """

    def __init__(self, mesh: Mesh, communicator: Communicator) -> None:
        self._mesh = mesh
        self._communicator = communicator
        self._groups: dict[tuple[str, ...], Ranks] = {}
        self.payload_bytes: Counter[str] = Counter()

    def run(self, x: Tensor, collective: Collective, dims: tuple[int, ...]) -> Tensor:
        """Return this rank's shard after a collective.

        Args:
            x: its shard before.
            collective: what is done.
            dims: the tensor's dim for each of the sharding's.
        """
        axes = collective.axes
        ranks, mine = self.group(axes), self._communicator.rank
        lengths = [self._mesh.size(axis) for axis in axes]
        places = tuple(dims[dim] for dim in collective.dims)
        match collective.kind:
            case "all_gather":
                y = _merged(self._communicator.all_gather(x, ranks), lengths, places)
                self._count("all_gather", y)
            case "reduce_scatter":
                pieces = _split(x, lengths, places)
                y = self._communicator.reduce_scatter(pieces, ranks)
                self._count("reduce_scatter", x)
            case "all_reduce":
                y = self._communicator.all_reduce(x, ranks)
                self._count("all_reduce", x, times=2)
            case "slice":
                y = _split(x, lengths, places)[ranks.index(mine)]
            case "all_to_all":
                assert collective.to_dim is not None
                pieces = _split(x, lengths, (dims[collective.to_dim],) * len(axes))
                y = _merged(self._communicator.all_to_all(pieces, ranks), lengths, places)
                self._count("all_to_all", x)
            case "permute":
                after = self.group(collective.to_axes)
                # Who holds, along the old order, the number that this rank has along the new one.
                source, target = ranks[after.index(mine)], after[ranks.index(mine)]
                y = self._communicator.permute(x, ranks, source=source, target=target)
                self._count("permute", x)
        return y

    def exchange(
        self, pieces: Sequence[Tensor], axes: tuple[str, ...], num_rows: Sequence[int]
    ) -> list[Tensor]:
        """Send a piece to each rank of a group, and return what each sends here.

        Args:
            pieces: of equal shapes but for the first dim, one for each rank.
            axes: of the group.
            num_rows: first dim of what each rank sends here.
        """
        received = self._communicator.exchange(pieces, self.group(axes), num_rows)
        self.payload_bytes["all_to_all"] += sum(piece.nbytes for piece in pieces)
        return received

    @property
    def rank(self) -> int:
        """Its own number in the mesh."""
        return self._communicator.rank

    def group(self, axes: tuple[str, ...]) -> Ranks:
        """Return the ranks that differ from this one along axes at most, in their order."""
        if axes not in self._groups:
            self._groups[axes] = self._mesh.group(self._communicator.rank, axes)
        return self._groups[axes]

    def _count(self, kind: str, x: Tensor, *, times: int = 1) -> None:
        self.payload_bytes[kind] += times * x.nbytes


def _split(x: Tensor, lengths: list[int], dims: tuple[int, ...]) -> list[Tensor]:
    """Return the piece of every rank of a group, when its axes enter dims."""
    pieces = [x]
    for length, dim in zip(lengths, dims, strict=True):
        assert x.shape[dim] % length == 0, "shards are equal"
        pieces = [part for piece in pieces for part in piece.chunk(length, dim)]
    return pieces


def _merged(pieces: list[Tensor], lengths: list[int], dims: tuple[int, ...]) -> Tensor:
    """Return a tensor of the pieces of a group's ranks, when its axes leave dims."""
    for length, dim in zip(reversed(lengths), reversed(dims), strict=True):
        pieces = [
            torch.cat(pieces[start : start + length], dim)
            for start in range(0, len(pieces), length)
        ]
    return pieces[0]
