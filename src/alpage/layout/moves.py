"""Moves: every place that one collective can take a tensor to."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, combinations_with_replacement, permutations, product
from math import prod
from typing import NamedTuple, final

from alpage.layout.collective import Kind

Axes = tuple[str, ...]


@final
class Place(NamedTuple):
    """A sharding without letters: the mesh axes of every dim, and those that hold summands."""

    cuts: tuple[Axes, ...]
    partial: Axes


@final
class Move(NamedTuple):
    """A collective, for a tensor of any number of bytes.

    The payload is in shares, of which a whole tensor has as many as the mesh has ranks.
    """

    kind: Kind
    axes: Axes
    dims: tuple[int, ...]
    to_dim: int | None
    to_axes: Axes
    payload_shares: int
    place: Place


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is and what costs a place.

    Attributes:
        axes: the mesh axes that have more than one rank, with how many they have.
        divisors: for every dim of the tensor, its greatest common divisor with the mesh's ranks.
    """

    axes: tuple[tuple[str, int], ...]
    divisors: tuple[int, ...]

    def num_ranks(self, axes: Axes) -> int:
        """Return how many ranks a group over these axes has."""
        return prod(length for axis, length in self.axes if axis in axes)

    def num_shares(self, place: Place) -> int:
        """Return how many shares of the tensor a rank holds."""
        return prod(length for axis, length in self.axes if axis not in chain(*place.cuts))

    def free(self, place: Place) -> Axes:
        """Return the axes along which all ranks hold the same."""
        used = {*chain(*place.cuts), *place.partial}
        return tuple(axis for axis, _ in self.axes if axis not in used)

    def fits(self, place: Place) -> bool:
        """Return whether every dim is cut into equal shards."""
        return not any(
            divisor % self.num_ranks(cut)
            for divisor, cut in zip(self.divisors, place.cuts, strict=True)
        )


def moves(place: Place, grid: Grid) -> Iterator[Move]:
    """Yield every collective that can be run at a place, and where it leads."""
    yield from _all_gathers(place, grid)
    yield from _slices(place, grid)
    yield from _reductions(place, grid)
    yield from _all_to_alls(place, grid)
    yield from _permutes(place, grid)


def _all_gathers(place: Place, grid: Grid) -> Iterator[Move]:
    for num_kept in product(*(range(len(cut) + 1) for cut in place.cuts)):
        both = tuple(zip(place.cuts, num_kept, strict=True))
        to = Place(tuple(cut[:num] for cut, num in both), place.partial)
        if to != place:
            axes, dims = _listed(tuple(cut[num:] for cut, num in both))
            yield Move("all_gather", axes, dims, None, (), grid.num_shares(to), to)


def _slices(place: Place, grid: Grid) -> Iterator[Move]:
    for added in _spread(grid.free(place), len(place.cuts)):
        to = Place(_joined(place.cuts, added), place.partial)
        if grid.fits(to):
            axes, dims = _listed(added)
            yield Move("slice", axes, dims, None, (), 0, to)


def _reductions(place: Place, grid: Grid) -> Iterator[Move]:
    num_shares = grid.num_shares(place)
    for num in range(1, len(place.partial) + 1):
        for axes in combinations(place.partial, num):
            to = Place(place.cuts, _without(place.partial, axes))
            yield Move("all_reduce", axes, (), None, (), 2 * num_shares, to)
    for added in _spread(place.partial, len(place.cuts)):
        axes, dims = _listed(added)
        to = Place(_joined(place.cuts, added), _without(place.partial, axes))
        if grid.fits(to):
            yield Move("reduce_scatter", axes, dims, None, (), num_shares, to)


def _all_to_alls(place: Place, grid: Grid) -> Iterator[Move]:
    num_shares = grid.num_shares(place)
    for dim, to_dim in permutations(range(len(place.cuts)), 2):
        for num_kept in range(len(place.cuts[dim])):
            cuts = list(place.cuts)
            axes = cuts[dim][num_kept:]
            cuts[dim] = cuts[dim][:num_kept]
            cuts[to_dim] += axes
            to = Place(tuple(cuts), place.partial)
            if grid.fits(to):
                yield Move("all_to_all", axes, (dim,) * len(axes), to_dim, (), num_shares, to)


def _permutes(place: Place, grid: Grid) -> Iterator[Move]:
    for dim, cut in enumerate(place.cuts):
        for order in permutations(cut):
            moved = [at for at in range(len(cut)) if cut[at] != order[at]]
            if moved:
                row = slice(moved[0], moved[-1] + 1)
                to = Place((*place.cuts[:dim], order, *place.cuts[dim + 1 :]), place.partial)
                dims = (dim,) * len(cut[row])
                num_shares = grid.num_shares(place)
                yield Move("permute", cut[row], dims, None, order[row], num_shares, to)


def _spread(axes: Axes, num_dims: int) -> Iterator[tuple[Axes, ...]]:
    """Yield every way to give some of the axes to dims, in every order."""
    for num in range(1, len(axes) + 1):
        for order in permutations(axes, num):
            for bounds in combinations_with_replacement(range(num + 1), num_dims - 1):
                ends = zip((0, *bounds), (*bounds, num), strict=True)
                yield tuple(order[start:end] for start, end in ends)


def _listed(cuts: tuple[Axes, ...]) -> tuple[Axes, tuple[int, ...]]:
    pairs = [(axis, dim) for dim, cut in enumerate(cuts) for axis in cut]
    return tuple(axis for axis, _ in pairs), tuple(dim for _, dim in pairs)


def _joined(cuts: tuple[Axes, ...], added: tuple[Axes, ...]) -> tuple[Axes, ...]:
    return tuple(cut + new for cut, new in zip(cuts, added, strict=True))


def _without(axes: Axes, gone: Axes) -> Axes:
    return tuple(axis for axis in axes if axis not in gone)
