"""Inline: all ranks of a mesh as threads of this process, for tests and for a look inside.

What they exchange are references, so nothing is faster than with one rank; but all that can be
wrong about a layout is wrong here too.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from alpage.errors import RankLost
from alpage.partition.communicator import Communicator, Ranks

T = TypeVar("T")


def run_inline(
    work: Callable[[Communicator], T], num_ranks: int, *, deadline_s: float = 60.0
) -> list[T]:
    """Return what `work` returns on every rank.

    Args:
        work: is called once a rank, each in a thread.
        num_ranks: ranks.
        deadline_s: that one exchange may wait for the ranks that are still missing.

    Raises:
        RankLost: a rank did not come to an exchange in time.
        Exception: what the first rank that failed raised.
    """
    board = _Board(deadline_s)

    def run(rank: int) -> T:
        try:
            with torch.inference_mode():
                return work(_InlineRank(rank, board))
        except BaseException:
            board.abort()
            raise

    with ThreadPoolExecutor(num_ranks, thread_name_prefix="rank") as threads:
        futures = [threads.submit(run, rank) for rank in range(num_ranks)]
    errors = [future.exception() for future in futures]
    for error in sorted(filter(None, errors), key=lambda e: isinstance(e, RankLost)):
        raise error
    return [future.result() for future in futures]


@final
class _Board:
    """Where ranks lay down what others take."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._barriers: dict[Ranks, threading.Barrier] = {}
        self._laid: dict[tuple[Ranks, int], Any] = {}
        self._is_aborted = False

    def exchange(self, rank: int, ranks: Ranks, value: Any) -> list[Any]:
        """Return the values of all ranks, once all have come."""
        group = tuple(sorted(ranks))
        with self._lock:
            barrier = self._barriers.setdefault(group, threading.Barrier(len(group)))
            self._laid[group, rank] = value
            if self._is_aborted:
                barrier.abort()
        try:
            barrier.wait(self._deadline_s)
            values = [self._laid[group, other] for other in ranks]
            barrier.wait(self._deadline_s)
        except threading.BrokenBarrierError as error:
            raise RankLost(
                field="rank",
                value=rank,
                limit=f"waited for others of the ranks {ranks}, of which one failed or took more "
                f"than {self._deadline_s:g} s",
                remedy="See the error of that rank",
            ) from error
        return values

    def abort(self) -> None:
        """Let nobody wait any more."""
        with self._lock:
            self._is_aborted = True
            for barrier in self._barriers.values():
                barrier.abort()


@final
class _InlineRank(Communicator):
    """One thread's side of the board."""

    def __init__(self, rank: int, board: _Board) -> None:
        self._rank = rank
        self._board = board

    @property
    def rank(self) -> int:
        """Its own number in the mesh."""
        return self._rank

    def all_gather(self, x: Tensor, ranks: Ranks) -> list[Tensor]:
        """See `Communicator`."""
        return self._board.exchange(self._rank, ranks, x)

    def all_reduce(self, x: Tensor, ranks: Ranks) -> Tensor:
        """See `Communicator`. All ranks add in the order of the group."""
        total: Tensor = reduce(torch.add, self._board.exchange(self._rank, ranks, x))
        return total

    def reduce_scatter(self, pieces: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """See `Communicator`."""
        return reduce(torch.add, self.all_to_all(pieces, ranks))

    def all_to_all(self, pieces: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
        """See `Communicator`."""
        place = ranks.index(self._rank)
        return [others[place] for others in self._board.exchange(self._rank, ranks, pieces)]

    def exchange(
        self,
        pieces: Sequence[Tensor],
        ranks: Ranks,
        num_rows: Sequence[int],
    ) -> list[Tensor]:
        """See `Communicator`."""
        received = self.all_to_all(pieces, ranks)
        assert [len(piece) for piece in received] == list(num_rows), "homes agree on their tokens"
        return received

    def permute(self, x: Tensor, ranks: Ranks, *, source: int, target: int) -> Tensor:
        """See `Communicator`."""
        del target
        return self.all_gather(x, ranks)[ranks.index(source)]
