"""Redistribute: the cheapest collectives that take a tensor from one sharding to another."""

from collections.abc import Mapping
from functools import lru_cache
from heapq import heappop, heappush
from math import gcd, prod

from alpage.errors import InvalidValue
from alpage.hardware import Mesh
from alpage.layout.collective import Collective
from alpage.layout.moves import Grid, Move, Place, moves
from alpage.layout.sharding import Sharding


def redistribute(
    a: Sharding, b: Sharding, *, sizes: Mapping[str, int], mesh: Mesh, element_bytes: int
) -> tuple[Collective, ...]:
    """Return the collectives that turn a's shards into b's: least payload, then fewest.

    They are found by Dijkstra's algorithm over all shardings of the tensor. Axes of one rank need
    no collective. Where an axis holds copies, a part of them may be sliced away and gathered again,
    if that makes what lies between cheaper.

    Args:
        a: how the tensor lies.
        b: how it shall lie: the same letters in the same order, and no partial sums that a has not.
        sizes: the whole tensor's size for each letter.
        mesh: where it lies.
        element_bytes: bytes of an element.

    Raises:
        InvalidValue: b cannot be made of a, or either does not fit the sizes and the mesh.

    >>> from alpage.hardware import resolve_cluster
    >>> mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    >>> a, b = Sharding.parse("TF_zy partialsum-x"), Sharding.parse("TF_zy")
    >>> for step in redistribute(a, b, sizes={"T": 64, "F": 73_728}, mesh=mesh, element_bytes=2):
    ...     print(step, step.payload_bytes)
    all_reduce(x) 1179648
    """
    known = tuple((letter, sizes[letter]) for letter in a.letters if letter in sizes)
    return _redistribute(a, b, known, mesh, element_bytes)


# A planner asks for the same again and again.
@lru_cache(maxsize=1 << 14)
def _redistribute(
    a: Sharding, b: Sharding, known: tuple[tuple[str, int], ...], mesh: Mesh, element_bytes: int
) -> tuple[Collective, ...]:
    _check_pair(a, b)
    sizes = dict(known)
    for sharding in (a, b):
        sharding.local_shape(sizes, mesh)
    grid = Grid(
        axes=tuple((axis, length) for axis, length in mesh.axes if length > 1),
        divisors=tuple(gcd(sizes[letter], mesh.num_ranks) for letter in a.letters),
    )
    total_bytes = element_bytes * prod(sizes[letter] for letter in a.letters)
    return tuple(
        _priced(move, num_bytes=total_bytes * move.payload_shares // mesh.num_ranks, grid=grid)
        for move in _cheapest(_place(a, grid), _place(b, grid), grid)
    )


@lru_cache(maxsize=1 << 14)
def _cheapest(start: Place, goal: Place, grid: Grid) -> tuple[Move, ...]:
    reached: dict[Place, tuple[int, int]] = {start: (0, 0)}  # payload, number of moves
    last: dict[Place, tuple[Move, Place]] = {}
    queue = [(0, 0, start)]  # payload and moves, with the least that is still to come
    settled: set[Place] = set()
    goal_shares = grid.num_shares(goal)
    while (place := heappop(queue)[2]) != goal:
        if place in settled:
            continue
        settled.add(place)
        payload_shares, num_moves = reached[place]
        for move in moves(place, grid):
            to = move.place
            cost = (payload_shares + move.payload_shares, num_moves + 1)
            if to not in reached or cost < reached[to]:
                reached[to] = cost
                last[to] = (move, place)
                ahead_shares = 0 if _is_part(goal, to) else goal_shares
                heappush(queue, (cost[0] + ahead_shares, cost[1] + (to != goal), to))
    path: list[Move] = []
    at = goal
    while at != start:
        move, at = last[at]
        path.append(move)
    return tuple(reversed(path))


def _is_part(goal: Place, place: Place) -> bool:
    """Return whether a slice suffices. Where not, the last payload has the whole goal in it."""
    cuts = zip(goal.cuts, place.cuts, strict=True)
    return goal.partial == place.partial and all(new[: len(old)] == old for new, old in cuts)


def _priced(move: Move, *, num_bytes: int, grid: Grid) -> Collective:
    num_ranks = grid.num_ranks(move.axes)
    kept_bytes = 0 if move.kind == "permute" else num_bytes // num_ranks
    return Collective(
        kind=move.kind,
        axes=move.axes,
        dims=move.dims,
        to_dim=move.to_dim,
        to_axes=move.to_axes,
        payload_bytes=num_bytes,
        wire_bytes=num_bytes - kept_bytes,
    )


def _place(sharding: Sharding, grid: Grid) -> Place:
    known = {axis for axis, _ in grid.axes}
    cuts = (tuple(axis for axis in dim.axes if axis in known) for dim in sharding.dims)
    return Place(tuple(cuts), tuple(axis for axis in sharding.partial if axis in known))


def _check_pair(a: Sharding, b: Sharding) -> None:
    if a.letters != b.letters:
        raise InvalidValue(
            field="sharding",
            value=str(b),
            limit=f"has other dims than {a}, which it shall be made of",
            remedy="Name the same dims in the same order",
        )
    if not set(b.partial) <= set(a.partial):
        raise InvalidValue(
            field="sharding",
            value=str(b),
            limit=f"has partial sums that {a} has not, and no collective makes them",
            remedy="Ask for the sum",
        )
