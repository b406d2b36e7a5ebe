"""The frontier against all pairs, and what a sweep and its slices of a cluster are made of."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.cost import Precision, Step
from alpage.errors import AlpageError, OutOfMemory
from alpage.hardware import resolve_cluster
from alpage.planners import choose_layout, frontier, slices, sweep
from alpage.shapes import named_shape

BFLOAT16 = [Precision()]
DECODE = Step(num_sequences=1, num_new_tokens=1, num_past_tokens=2048)


@pytest.fixture(scope="module")
def any_candidate():
    return choose_layout(named_shape("gpt2"), resolve_cluster("h100-1"), DECODE).best


@given(found=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), max_size=12))
def test_frontier_against_all_pairs(any_candidate, found):
    """Of seconds and powers of two for the batch: of those with both alike, the first is kept."""
    some = [
        replace(
            any_candidate,
            step=replace(any_candidate.step, num_sequences=1 << power),
            terms=replace(
                any_candidate.terms,
                products_s=float(seconds),
                attention_s=0.0,
                transfer_s=0.0,
                latency_s=0.0,
                gather_s=0.0,
            ),
        )
        for seconds, power in found
    ]
    both = [(one.step_s, one.device_s_per_token) for one in some]
    expected = [
        one
        for at, (one, (seconds, cost)) in enumerate(zip(some, both, strict=True))
        if not any((s, c) != (seconds, cost) and s <= seconds and c <= cost for s, c in both)
        and both.index(both[at]) == at
    ]
    assert frontier(some) == tuple(sorted(expected, key=lambda one: one.step_s))


def test_sweep_is_what_is_chosen():
    """Powers of two, and of each cluster as many as fit."""
    shape, clusters = named_shape("palm-62b"), [resolve_cluster(f"a100-{n}") for n in (1, 2, 8)]
    points = sweep(shape, clusters, DECODE, max_batch=100, precisions=BFLOAT16)
    expected = []
    for cluster in clusters:
        for batch in (1, 2, 4, 8, 16, 32, 64):
            try:
                step = replace(DECODE, num_sequences=batch)
                expected.append(choose_layout(shape, cluster, step, precisions=BFLOAT16).best)
            except AlpageError:
                continue
    assert list(points) == expected
    assert {one.mesh.num_ranks for one in points} == {2, 8}


def test_sweep_ends_where_memory_does():
    shape, cluster = named_shape("palm-8b"), resolve_cluster("h100-1")
    points = sweep(shape, [cluster], DECODE, max_batch=1 << 20)
    largest = points[-1].step.num_sequences
    assert [one.step.num_sequences for one in points] == [1 << i for i in range(len(points))]
    with pytest.raises(OutOfMemory):
        choose_layout(shape, cluster, replace(DECODE, num_sequences=2 * largest))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("h100-16", [1, 2, 4, 8, 16]),
        ("a100-24", [1, 2, 4, 8, 16, 24]),
        ("tpu-v4-32", [8, 16, 32]),
    ],
)
def test_slices(name, sizes):
    cluster = resolve_cluster(name)
    found = slices(cluster)
    assert [one.num_devices for one in found if one.num_devices >= min(sizes)] == sizes
    assert {one.device for one in found} == {cluster.device}
    assert found[-1] == cluster


def test_slices_of_what_has_another_name():
    """A user's own devices, though they call them as the catalogue calls others."""
    cluster = resolve_cluster("h100-8")
    alone = replace(cluster, name="our machine")
    faster = replace(cluster, device=replace(cluster.device, memory_bytes_per_s=9e12))
    assert slices(alone) == (alone,)
    assert slices(faster) == (faster,)
