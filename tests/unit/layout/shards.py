"""Shards: a tensor cut over a mesh as arrays of one process, and collectives that run on them.

Written from what a sharding and a collective mean, without the search that finds them.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from alpage.hardware import resolve_cluster

Shards = dict[tuple[int, ...], np.ndarray]  # by coordinates


def mesh_of(**sizes):
    num_devices = int(np.prod(list(sizes.values())))
    return resolve_cluster(f"tpu-v4-{num_devices}").mesh(**sizes)


def scattered(array, sharding, mesh, random) -> Shards:
    """Cut an array; along the axes of partial sums it comes as random summands."""
    lengths = dict(mesh.axes)
    places = list(product(*(range(lengths[axis]) for axis in sharding.partial)))
    summands = [random.integers(-9, 10, array.shape) for _ in places[1:]]
    summand_at = dict(zip(places, [array - sum(summands), *summands], strict=True))
    return {
        at: _cut(summand_at[_along(at, sharding.partial, mesh)], at, sharding, mesh)
        for at in _ranks(mesh)
    }


def assert_is(array, shards: Shards, sharding, mesh):
    """Every rank holds its shard of the array, or summands of it that are the same elsewhere."""
    for at in _ranks(mesh):
        group = _group(at, sharding.partial, mesh)
        total = sum(shards[member] for member in group)
        np.testing.assert_array_equal(total, _cut(array, at, sharding, mesh))
        free = [axis for axis in mesh.names if axis not in sharding.partial]
        free = [axis for axis in free if all(axis not in dim.axes for dim in sharding.dims)]
        for copy in _group(at, free, mesh):
            np.testing.assert_array_equal(shards[copy], shards[at])


def run(step, shards: Shards, mesh) -> Shards:
    """Run one collective on all ranks."""
    return {at: _result(step, at, shards, mesh) for at in shards}


def _result(step, at, shards, mesh):
    group = _group(at, step.axes, mesh)
    held = [shards[member] for member in group]
    lengths = [dict(mesh.axes)[axis] for axis in step.axes]
    mine = group.index(at)
    match step.kind:
        case "all_gather":
            return _merged(held, lengths, step.dims)
        case "reduce_scatter":
            return _split(sum(held), lengths, step.dims)[mine]
        case "all_reduce":
            return sum(held)
        case "slice":
            return _split(shards[at], lengths, step.dims)[mine]
        case "all_to_all":
            to_dims = (step.to_dim,) * len(step.axes)
            got = [_split(shard, lengths, to_dims)[mine] for shard in held]
            return _merged(got, lengths, step.dims)
        case "permute":
            return held[_group(at, step.to_axes, mesh).index(at)]


def _split(array, lengths, dims):
    """Return the piece of every rank of a group, when its axes enter dims."""
    pieces = [array]
    for length, dim in zip(lengths, dims, strict=True):
        pieces = [part for piece in pieces for part in np.split(piece, length, axis=dim)]
    return pieces


def _merged(pieces, lengths, dims):
    """Undo `_split`."""
    for length, dim in reversed(list(zip(lengths, dims, strict=True))):
        rows = range(0, len(pieces), length)
        pieces = [np.concatenate(pieces[row : row + length], axis=dim) for row in rows]
    return pieces[0]


def _cut(array, at, sharding, mesh):
    lengths = dict(mesh.axes)
    for number, dim in enumerate(sharding.dims):
        for axis in dim.axes:  # the major one first
            shards = np.split(array, lengths[axis], axis=number)
            array = shards[at[mesh.names.index(axis)]]
    return array


def _ranks(mesh) -> Iterator[tuple[int, ...]]:
    return product(*(range(length) for _, length in mesh.axes))


def _along(at, axes, mesh):
    return tuple(at[mesh.names.index(axis)] for axis in axes)


def _group(at, axes, mesh) -> list[tuple[int, ...]]:
    """Return the ranks that differ from one in these axes only, the first axis major."""
    others = [axis for axis in mesh.names if axis not in axes]
    members = [
        rank for rank in _ranks(mesh) if _along(rank, others, mesh) == _along(at, others, mesh)
    ]
    return sorted(members, key=lambda rank: _along(rank, axes, mesh))
