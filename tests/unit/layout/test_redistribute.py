"""Redistribute: the collectives do what they say, and none are cheaper.

The twin knows one collective from another by comparing two places, and tries all lists of them.
"""

from functools import lru_cache
from itertools import permutations, product
from math import inf, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import assert_is, mesh_of, run, scattered

from alpage.errors import InvalidValue
from alpage.layout import Dim, Sharding, redistribute

MESHES = [mesh_of(x=2, y=2, z=2), mesh_of(x=4, y=2), mesh_of(x=2, y=1, z=4)]
LETTERS = "BLE"


@st.composite
def journeys(draw, num_dims=3):
    """A mesh, two shardings that one tensor may have on it, and sizes that both can cut."""
    mesh = draw(st.sampled_from(MESHES))
    places = [f"dim{number}" for number in range(num_dims)] + ["partial", "none"]
    axes = draw(st.permutations(mesh.names))
    a = draw(st.tuples(*(st.sampled_from(places) for _ in axes)))
    summed = [axis for axis, place in zip(axes, a, strict=True) if place == "partial"]
    b_axes = draw(st.permutations(mesh.names))
    b = [
        draw(st.sampled_from([p for p in places if p != "partial" or x in summed])) for x in b_axes
    ]
    shardings = [_sharding(axes, a, num_dims), _sharding(b_axes, b, num_dims)]
    sizes = {}
    for number in range(num_dims):
        cuts = [mesh.size(sharding.dims[number].axes) for sharding in shardings]
        sizes[LETTERS[number]] = int(np.lcm(*cuts)) * draw(st.sampled_from([1, 2, 3]))
    return mesh, *shardings, sizes


def _sharding(axes, places, num_dims):
    on = {
        place: tuple(x for x, at in zip(axes, places, strict=True) if at == place)
        for place in places
    }
    dims = (Dim(letter=LETTERS[n], axes=on.get(f"dim{n}", ())) for n in range(num_dims))
    return Sharding(dims=tuple(dims), partial=on.get("partial", ()))


@given(journeys(), st.integers(0, 2**32))
def test_collectives_turn_one_sharding_into_the_other(journey, seed):
    mesh, a, b, sizes = journey
    random = np.random.default_rng(seed)
    array = random.integers(-99, 100, [sizes[letter] for letter in a.letters])
    shards = scattered(array, a, mesh, random)
    for step in redistribute(a, b, sizes=sizes, mesh=mesh, element_bytes=8):
        before = shards
        shards = run(step, before, mesh)
        assert step.payload_bytes == payload_of(step, before, shards)
        assert step.wire_bytes == wire_of(step, mesh)
    assert_is(array, shards, b, mesh)


def payload_of(step, before, after):
    """The bytes of a step by its definition, from the arrays that it took and gave."""
    (taken,) = {shard.nbytes for shard in before.values()}
    (given_,) = {shard.nbytes for shard in after.values()}
    return {"all_gather": given_, "slice": 0, "all_reduce": 2 * taken}.get(step.kind, taken)


def wire_of(step, mesh):
    if step.kind == "permute":
        return step.payload_bytes
    num_ranks = mesh.size(step.axes)
    return -(-step.payload_bytes * (num_ranks - 1) // num_ranks)


@settings(max_examples=100)
@given(journeys(num_dims=2))
def test_nothing_is_cheaper_than_the_answer(journey):
    mesh, a, b, sizes = journey
    steps = redistribute(a, b, sizes=sizes, mesh=mesh, element_bytes=1)
    payload_bytes = sum(step.payload_bytes for step in steps)
    assert (payload_bytes, len(steps)) == twin(mesh, _bare(a, mesh), _bare(b, mesh), sizes)


def _bare(sharding, mesh):
    """The axes of every dim and those of partial sums, without axes of one rank."""
    cuts = [dim.axes for dim in sharding.dims] + [sharding.partial]
    return tuple(tuple(axis for axis in cut if mesh.size(axis) > 1) for cut in cuts)


def twin(mesh, a, b, sizes):
    """The least (payload, number of collectives) of all lists, each round one longer."""
    whole = tuple(sizes[letter] for letter in LETTERS[: len(a) - 1])
    places = [
        place
        for place in all_places(tuple(x for x in mesh.names if mesh.size(x) > 1), len(a), a[-1])
        if all(n % mesh.size(cut) == 0 for n, cut in zip(whole, place[:-1], strict=True))
    ]
    shards = {p: prod(whole) // prod(mesh.size(cut) for cut in p[:-1]) for p in places}
    best = {a: (0, 0)}
    frontier = {a}
    while frontier:
        nearer = set()
        for s, t in product(frontier, places):
            payload = price(s, t, shards[s], shards[t])
            if payload is not None:
                cost = (best[s][0] + payload, best[s][1] + 1)
                if cost < best.get(t, (inf, 0)):
                    best[t] = cost
                    nearer.add(t)
        frontier = nearer
    return best[b]


@lru_cache
def all_places(axes, num_cuts, summed):
    """Every place of a tensor: an axis cuts a dim, or nothing, or still holds a's partial sums."""
    found = set()
    for order in permutations(axes):
        for at in product(range(num_cuts + 1), repeat=len(axes)):
            cuts = [
                tuple(x for x, n in zip(order, at, strict=True) if n == c) for c in range(num_cuts)
            ]
            cuts[-1] = tuple(sorted(cuts[-1]))
            if set(cuts[-1]) <= set(summed):
                found.add(tuple(cuts))
    return found


def price(s, t, held, given_):  # noqa: PLR0911
    """The payload of the one collective between two places, or None where there is none."""
    change = [(old, new) for old, new in zip(s[:-1], t[:-1], strict=True) if old != new]
    longer = [new[len(old) :] for old, new in change if new[: len(old)] == old]
    shorter = [old[len(new) :] for old, new in change if old[: len(new)] == new]
    entered = {axis for cut in longer for axis in cut}
    added = set(s[-1]) - set(t[-1])
    if set(t[-1]) - set(s[-1]) or s == t:
        return None
    if added:
        if not change:
            return 2 * held
        return held if len(longer) == len(change) and entered == added else None
    if len(longer) == len(change):
        return 0
    if len(shorter) == len(change):
        return given_
    if len(change) == 1 and sorted(change[0][0]) == sorted(change[0][1]):
        return held
    return held if len(change) == 2 and longer == shorter and longer else None


def steps_of(a, b, mesh, **sizes):
    a, b = Sharding.parse(a), Sharding.parse(b)
    return redistribute(a, b, sizes=sizes, mesh=mesh, element_bytes=2)


CUBE = mesh_of(x=4, y=4, z=4)

KNOWN = [
    ("TE_xzy", "TE_xzy", []),
    ("TE_xzy", "TE_x", [("all_gather(zy) dim 1", 64 * 256 // 4)]),
    ("E_xF_zy", "EF", [("all_gather(xzy) dim 0,1", 256 * 1024)]),
    ("TE_x partialsum-yz", "TE_xzy", [("reduce_scatter(zy) dim 1", 64 * 256 // 4)]),
    ("TF_zy partialsum-x", "TF_zy", [("all_reduce(x)", 2 * 64 * 1024 // 16)]),
    ("EF partialsum-xyz", "E_xF_zy", [("reduce_scatter(xzy) dim 0,1", 256 * 1024)]),
    ("BH_xyzK", "B_xyzHK", [("all_to_all(xyz) dim 1 to 0", 64 * 64 * 128 // 64)]),
    ("B_yzH_xK", "BH_xyzK", [("all_to_all(yz) dim 0 to 1", 64 * 64 * 128 // 64)]),
    ("TE_x", "T_yzE_x", [("slice(yz) dim 0", 0)]),
    ("E_xyz", "E_xzy", [("permute(yz) dim 0 as zy", 256 // 64)]),
    # What y and z hold in copies is cheaper to add up in parts.
    (
        "TE partialsum-x",
        "TE",
        [
            ("slice(yz) dim 1", 0),
            ("reduce_scatter(x) dim 1", 64 * 256 // 16),
            ("all_gather(yzx) dim 1", 64 * 256),
        ],
    ),
]


@pytest.mark.parametrize(("a", "b", "expected"), KNOWN)
def test_known_answers(a, b, expected):
    steps = steps_of(a, b, CUBE, B=64, T=64, E=256, F=1024, H=64, K=128)
    payloads = [(text, 2 * elements) for text, elements in expected]
    assert [step.payload_bytes for step in steps] == [payload for _, payload in payloads]
    assert len(steps) != 1 or str(steps[0]) == payloads[0][0]
    assert [step.kind for step in steps] == [text.partition("(")[0] for text, _ in payloads]


def test_axes_of_one_rank_need_nothing():
    flat = mesh_of(x=4, y=1, z=2)
    assert steps_of("TE_y", "T_yE", flat, T=1, E=8) == ()
    (step,) = steps_of("TE_xyz", "TE_x", flat, T=1, E=8)
    assert step.axes == ("z",)


def test_a_dim_that_cannot_be_cut_is_no_way_round():
    """With one token, an all-to-all through the tokens is out, and so is slicing them."""
    steps = steps_of("TE_x partialsum-y", "TE_x", mesh_of(x=2, y=2, z=2), T=1, E=6)
    assert [str(step) for step in steps] == ["all_reduce(y)"]
    assert steps[0].wire_bytes == 2 * 2 * 3 // 2


def test_wire_bytes_of_an_uneven_all_reduce_are_rounded_up():
    (step,) = steps_of("TE partialsum-x", "TE", mesh_of(x=4), T=1, E=5)
    assert (step.payload_bytes, step.wire_bytes) == (20, 15)
    (step,) = steps_of("TE partialsum-x", "TE", mesh_of(x=8), T=1, E=5)
    assert (step.payload_bytes, step.wire_bytes) == (20, 18)  # 17.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("TE", "TF", "has other dims than TE"),
        ("TE", "ET", "has other dims than TE"),
        ("TE", "TE partialsum-x", "has partial sums that TE has not"),
        ("TE_x partialsum-y", "TE_x partialsum-yz", "has partial sums that"),
        ("TE", "TE_w", "uses the mesh axis w"),
        ("TE", "T_xE", "tokens=2: cannot be cut into 4 equal shards"),
    ],
)
def test_refused_pairs(a, b, message):
    with pytest.raises(InvalidValue, match=message):
        steps_of(a, b, CUBE, T=2, E=64, F=64)
