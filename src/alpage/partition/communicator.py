"""Communicator: exchanges between the ranks of a group.

A group is named by its ranks, in the order that its lists have; all of them call the same.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor

from alpage.hardware import Mesh

Ranks = tuple[int, ...]
# Of all that a rank would receive: below, waiting for a second round takes longer than its bytes.
_MAX_ONE_ROUND_BYTES = 2**18


class Communicator(Protocol):
    """What a rank can do together with others."""

    @property
    def rank(self) -> int:
        """Its own number in the mesh."""

    def all_gather(self, x: Tensor, ranks: Ranks) -> list[Tensor]:
        """Return the x of each rank."""

    def all_reduce(self, x: Tensor, ranks: Ranks) -> Tensor:
        """Return the sum of all x."""

    def reduce_scatter(self, pieces: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """Return the sum of all pieces that are meant for this rank: one is for each, in order."""

    def all_to_all(self, pieces: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
        """Return the piece that each rank has for this one."""

    def exchange(
        self, pieces: Sequence[Tensor], ranks: Ranks, num_rows: Sequence[int]
    ) -> list[Tensor]:
        """Like `all_to_all` of pieces that differ in their first dim, as the received ones do."""

    def permute(self, x: Tensor, ranks: Ranks, *, source: int, target: int) -> Tensor:
        """Send x to one rank of the group and return what another sends."""


@final
class ProcessGroups(Communicator):
    """Ranks that are processes, joined by `torch.distributed`: gloo on CPUs, NCCL on GPUs.

    Making it is itself something that all ranks do together. With gloo every collective is made of
    exchanges, in which each rank sends straight to each other: its own ones are several times
    slower, and sum in an order that depends on the size.

    Args:
        mesh: the ranks; there is a group for every set of its axes. Where there are more processes,
            as many as the mesh has ranks in turn are a mesh of their own.
    """

    def __init__(self, mesh: Mesh) -> None:
        own, self._rank = divmod(dist.get_rank(), mesh.num_ranks)
        self._first = own * mesh.num_ranks
        self._is_direct = dist.get_backend() == "gloo"
        axes = [name for name, size in mesh.axes if size > 1]
        groups = {
            tuple(sorted(mesh.group(rank, some)))
            for number in range(1, len(axes) + 1)
            for some in combinations(axes, number)
            for rank in range(mesh.num_ranks)
        }
        # All processes make all groups, in the same order.
        for first in range(0, dist.get_world_size(), mesh.num_ranks):
            made = {
                ranks: dist.new_group([first + rank for rank in ranks]) for ranks in sorted(groups)
            }
            if first == self._first:
                self._groups = made

    @property
    def rank(self) -> int:
        """Its own number in the mesh."""
        return self._rank

    def all_gather(self, x: Tensor, ranks: Ranks) -> list[Tensor]:
        """See `Communicator`."""
        x = x.contiguous()
        if self._is_direct:
            return self.all_to_all([x] * len(ranks), ranks)
        gathered = [torch.empty_like(x) for _ in ranks]
        dist.all_gather(gathered, x, group=self._group(ranks))
        return _reordered(gathered, sorted(ranks), ranks)

    def all_reduce(self, x: Tensor, ranks: Ranks) -> Tensor:
        """See `Communicator`."""
        if not self._is_direct:
            total = x.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total, group=self._group(ranks))
            return total
        if x.nbytes * len(ranks) <= _MAX_ONE_ROUND_BYTES:
            return _sum(self.all_gather(x, ranks))
        # Two rounds send 2 (K - 1) / K of it, one would send K - 1.
        parts = list(x.reshape(-1).tensor_split(len(ranks)))
        mine = _sum(self.exchange(parts, ranks, [len(parts[ranks.index(self._rank)])] * len(ranks)))
        return torch.cat(
            self.exchange([mine] * len(ranks), ranks, [len(part) for part in parts])
        ).view(x.shape)

    def reduce_scatter(self, pieces: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """See `Communicator`."""
        if self._is_direct:
            return _sum(self.all_to_all(pieces, ranks))
        sent = [piece.contiguous() for piece in _reordered(pieces, ranks, sorted(ranks))]
        mine = torch.empty_like(sent[0])
        dist.reduce_scatter(mine, sent, group=self._group(ranks))
        return mine

    def all_to_all(self, pieces: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
        """See `Communicator`."""
        received = self.exchange([piece[None] for piece in pieces], ranks, [1] * len(pieces))
        return [piece[0] for piece in received]

    def exchange(
        self, pieces: Sequence[Tensor], ranks: Ranks, num_rows: Sequence[int]
    ) -> list[Tensor]:
        """See `Communicator`."""
        if len(ranks) == 1:
            return list(pieces)
        order = sorted(ranks)
        sent = _reordered(pieces, ranks, order)
        num_sent = [len(piece) for piece in sent]
        num_received = [num_rows[ranks.index(rank)] for rank in order]
        received = sent[0].new_empty((sum(num_received), *sent[0].shape[1:]))
        dist.all_to_all_single(
            received, torch.cat(sent), num_received, num_sent, group=self._group(ranks)
        )
        return _reordered(torch.split(received, num_received), order, ranks)

    def permute(self, x: Tensor, ranks: Ranks, *, source: int, target: int) -> Tensor:
        """See `Communicator`. Only the two ranks take part."""
        del ranks
        if source == self._rank:
            return x
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        operations = [
            dist.P2POp(dist.isend, x.contiguous(), self._first + target),
            dist.P2POp(dist.irecv, received, self._first + source),
        ]
        for request in dist.batch_isend_irecv(operations):
            request.wait()
        return received

    def _group(self, ranks: Ranks) -> Any:
        return self._groups[tuple(sorted(ranks))]


def _sum(pieces: Sequence[Tensor]) -> Tensor:
    """Return the sum in the order of the ranks, which is the same on all of them."""
    return reduce(torch.add, pieces)


def _reordered(
    items: Sequence[Tensor], order: Sequence[int], wanted: Sequence[int]
) -> list[Tensor]:
    """Return items that belong to ranks in one order in another."""
    return [items[order.index(rank)] for rank in wanted]
