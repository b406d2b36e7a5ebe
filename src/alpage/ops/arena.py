"""Arena: places in one memory for buffers that live at different times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a buffer holds something, ends included, and how much."""

    first: int
    last: int
    num_bytes: int

    def meets(self, other: "Lifetime") -> bool:
        """Whether both hold something at some time."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Sequence[Lifetime], multiple: int) -> tuple[list[int], int]:
    """Return where each begins, at multiples of a number, and the bytes of all.

    The largest come first, each to the lowest place that is free as long as it lives: that is short
    and, of buffers that repeat from layer to layer, close to the least.
    """
    starts = [0] * len(lifetimes)
    placed: list[int] = []
    for number in sorted(range(len(lifetimes)), key=lambda n: -lifetimes[n].num_bytes):
        own = lifetimes[number]
        met = sorted((starts[n], n) for n in placed if lifetimes[n].meets(own))
        start = 0
        for other_start, other in met:
            if start + own.num_bytes <= other_start:
                break
            end = other_start + lifetimes[other].num_bytes
            start = max(start, -(-end // multiple) * multiple)
        starts[number] = start
        placed.append(number)
    ends = (start + life.num_bytes for start, life in zip(starts, lifetimes, strict=True))
    return starts, max(ends, default=0)
