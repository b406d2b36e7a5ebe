"""Soak memory: what processes hold beyond what they had reserved when they began to serve.

Pools of KV pages are reserved at once and take memory as they are first used, which may go on for
long and has an end. So the mappings that a process has when it begins are set aside, page by page,
and what is resident outside them is what it has taken since. A leak has to take such memory, once
what is free within them is used up.
"""

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np

from alpage.units import MiB

# Large tensors get mappings of their own, which go back to the system when they are freed. Else
# what glibc keeps of them for the next ones grows in steps of up to 64 MiB, an arena each.
ENVIRONMENT: Final[Mapping[str, str]] = {"MALLOC_MMAP_THRESHOLD_": str(MiB)}

_Ranges: TypeAlias = list[tuple[int, int]]
_PAGEMAP_BYTES: Final = 8
_IS_PRESENT: Final = np.uint64(1 << 63)


@final
class Grown:
    """What some processes take, from now on.

    Args:
        pids: that have reserved what they need.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._reserved: dict[int, _Ranges] = {}
        self.add(pids)

    def add(self, pids: Iterable[int]) -> None:
        """Look at some more processes, that have reserved what they need by now."""
        self._reserved |= {pid: list(_private(pid)) for pid in pids}

    def bytes_of(self, pid: int) -> int:
        """Return what a process holds privately outside what it had reserved; 0 if it is gone."""
        try:
            with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
                taken = _outside(_private(pid), self._reserved.get(pid, []))
                return sum(_resident_bytes(pagemap.fileno(), start, end) for start, end in taken)
        except (OSError, ValueError):
            return 0


def _private(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of addresses that a process writes for itself, rising."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, rights, *_ = line.split()
        if rights[1] == "w" and rights[3] == "p":
            start, end = (int(number, 16) for number in place.split("-"))
            yield start, end


def _outside(ranges: Iterable[tuple[int, int]], others: _Ranges) -> Iterator[tuple[int, int]]:
    """Yield the parts of ranges that are in none of others; both rise.

    >>> list(_outside([(0, 10), (20, 30)], [(2, 4), (8, 22)]))
    [(0, 2), (4, 8), (22, 30)]
    """
    edges = [edge for other in others for edge in other]
    for start, end in ranges:
        cuts = [start, *edges[bisect_right(edges, start) :], end]
        for low, high in pairwise(sorted(min(cut, end) for cut in cuts)):
            # Behind an odd number of edges is inside.
            if low < high and bisect_right(edges, low) % 2 == 0:
                yield low, high


def _resident_bytes(pagemap: int, start: int, end: int) -> int:
    first, num_pages = start // mmap.PAGESIZE, (end - start) // mmap.PAGESIZE
    data = os.pread(pagemap, num_pages * _PAGEMAP_BYTES, first * _PAGEMAP_BYTES)
    is_present = np.frombuffer(data, np.uint64) & _IS_PRESENT != 0
    return int(is_present.sum()) * mmap.PAGESIZE
