"""Home: the part of all sequences whose keys and values one rank keeps.

Pages of all homes are numbered on: the page that a sequence begins with tells where it lives. A
rank that keeps its heads of every sequence is the only home there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

from alpage.serve.batch import Move, Row
from alpage.serve.slots import Slots


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One home among several.

    Attributes:
        number: of this one.
        num_homes: that there are.
        num_pages: of each on its device.
        num_host_pages: of each on the host.
    """

    number: int = 0
    num_homes: int = 1
    num_pages: int
    num_host_pages: int

    def order(self, rows: Sequence[Row], slots: Slots) -> list[int]:
        """Return the numbers of the rows in the order of their homes."""
        if self.num_homes == 1:
            return list(range(len(rows)))
        return sorted(range(len(rows)), key=lambda number: self._of(rows[number], slots))

    def bounds(self, rows: Sequence[Row], slots: Slots) -> list[tuple[int, int]]:
        """Return the first row, and the one behind the last, of each home; rows are in order."""
        if self.num_homes == 1:
            return [(0, len(rows))]
        counts = [0] * self.num_homes
        for row in rows:
            counts[self._of(row, slots)] += 1
        return list(pairwise(accumulate(counts, initial=0)))

    def out(self, moves: Iterable[Move]) -> list[Move]:
        """Return the moves from here to the host."""
        return self._mine(moves, self.num_pages, self.num_host_pages)

    def back(self, moves: Iterable[Move]) -> list[Move]:
        """Return the moves from the host to here."""
        return self._mine(moves, self.num_host_pages, self.num_pages)

    def copies(self, moves: Iterable[Move]) -> list[Move]:
        """Return the moves from page to page here."""
        return self._mine(moves, self.num_pages, self.num_pages)

    def _of(self, row: Row, slots: Slots) -> int:
        return int(slots.table_NP[row.slot, 0]) // self.num_pages

    def _mine(self, moves: Iterable[Move], num_sources: int, num_targets: int) -> list[Move]:
        """Return the moves here, by the numbers that pages have here."""
        return [
            Move(move.source % num_sources, move.target % num_targets)
            for move in moves
            if move.source // num_sources == self.number
        ]
