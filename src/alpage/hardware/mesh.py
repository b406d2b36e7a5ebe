"""Mesh: the devices of a cluster along named axes.

Ranks count row by row: the first axis is the outermost and goes over the hosts, the last one is the
innermost, and its neighbours are neighbours in the cluster.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, final

from alpage.errors import InvalidValue

if TYPE_CHECKING:
    from alpage.hardware.cluster import Cluster

Axes = tuple[tuple[str, int], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """How far apart the ranks of a group are.

    Attributes:
        num_ranks: ranks of a group.
        num_hosts: hosts that a group has ranks on; of unequal groups, the most.
        ranks_per_host: ranks that a group has on one host; of unequal ones, the most.
    """

    num_ranks: int
    num_hosts: int
    ranks_per_host: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """All devices of a cluster, along named axes.

    Attributes:
        cluster: whose devices they are; rank r is device r.
        axes: name and size of each axis, outermost first. A name is one small letter.

    Raises:
        InvalidValue: a name is not one small letter or comes twice, or the sizes multiplied are not
            the number of devices.
    """

    cluster: "Cluster"
    axes: Axes

    def __post_init__(self) -> None:
        for name, size in self.axes:
            is_letter = len(name) == 1 and name.isascii() and name.islower()
            if not is_letter or self.names.count(name) > 1 or size < 1:
                raise InvalidValue(
                    field=f"mesh: {name}",
                    value=size,
                    limit="an axis must have a small letter for a name, that no other axis has, "
                    "and a size above 0",
                    remedy="Name the axes as in x=4, y=2",
                )
        num_ranks = math.prod(size for _, size in self.axes)
        if num_ranks != self.cluster.num_devices:
            raise InvalidValue(
                field="mesh",
                value=str(self),
                limit=f"has {num_ranks} places for the {self.cluster.num_devices} devices of "
                f"{self.cluster.name}",
                remedy="Give axes whose sizes multiply to the number of devices",
            )

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes, outermost first."""
        return tuple(name for name, _ in self.axes)

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole mesh."""
        return self.cluster.num_devices

    def size(self, axes: Iterable[str]) -> int:
        """Return the ranks of a group over some axes: their sizes multiplied, 1 for none.

        Raises:
            InvalidValue: the mesh has no such axis.
        """
        sizes = dict(self.axes)
        return math.prod(sizes[name] for name in self._checked(axes))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return where a rank is along each axis.

        Raises:
            InvalidValue: the mesh has no such rank.
        """
        self._check_rank(rank)
        return {
            name: rank // stride % size
            for (name, size), stride in zip(self.axes, _strides(self.axes), strict=True)
        }

    def group(self, rank: int, axes: Iterable[str]) -> tuple[int, ...]:
        """Return the ranks that differ from a rank in some axes only, itself among them.

        They count row by row over the axes in the order given, so that the n-th of them holds the
        n-th shard of a dim that is split over these axes.

        Raises:
            InvalidValue: the mesh has no such rank or no such axis.
        """
        names = self._checked(axes)
        strides = dict(zip(self.names, _strides(self.axes), strict=True))
        first = rank - sum(self.coordinates(rank)[name] * strides[name] for name in names)
        return tuple(first + offset for offset in _offsets(self.axes, names))

    def span(self, axes: Iterable[str]) -> Span:
        """Return how far apart the ranks of the groups over some axes are, by counting them.

        Raises:
            InvalidValue: the mesh has no such axis.
        """
        return _span(self.axes, self._checked(axes), self.cluster.devices_per_host)

    def _checked(self, axes: Iterable[str]) -> tuple[str, ...]:
        names = tuple(axes)
        once = set(names)
        if len(once) < len(names) or not once <= dict(self.axes).keys():
            raise InvalidValue(
                field="axes",
                value=names,
                limit=f"must name axes of the mesh {self}, each at most once",
                remedy=f"Choose among {', '.join(self.names)}",
            )
        return names

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.num_ranks:
            raise InvalidValue(
                field="rank",
                value=rank,
                limit=f"must be from 0 to {self.num_ranks - 1}",
                remedy="Choose a rank of the mesh",
            )


@lru_cache(maxsize=1 << 12)
def _span(axes: Axes, names: tuple[str, ...], devices_per_host: int) -> Span:
    offsets = tuple(_offsets(axes, names))
    others = tuple(name for name, _ in axes if name not in names)
    per_host = [
        Counter((first + offset) // devices_per_host for offset in offsets)
        for first in _offsets(axes, others)
    ]
    return Span(
        num_ranks=len(offsets),
        num_hosts=max(map(len, per_host)),
        ranks_per_host=max(max(counts.values()) for counts in per_host),
    )


def _offsets(axes: Axes, names: tuple[str, ...]) -> Iterator[int]:
    """Ranks of the group of rank 0, row by row over the axes as named."""
    steps = {
        name: range(0, size * stride, stride)
        for (name, size), stride in zip(axes, _strides(axes), strict=True)
    }
    return map(sum, product(*(steps[name] for name in names)))


def _strides(axes: Axes) -> tuple[int, ...]:
    """Ranks from one place to the next, by axis."""
    sizes = [size for _, size in axes]
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
