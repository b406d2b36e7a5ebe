"""The link that explains times of collectives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.runtime.link_fit import KINDS, TimedCollective, fit_link
from alpage.units import KiB, MiB

SIZES = (16 * KiB, MiB, 16 * MiB)


def timed(kind, num_ranks, full_bytes, time_s):
    return TimedCollective(kind=kind, num_ranks=num_ranks, full_bytes=full_bytes, time_s=time_s)


def test_hops_and_bytes():
    shown = [timed(kind, 4, 4096, 1.0) for kind in KINDS]
    assert [(one.kind, one.num_hops, one.wire_bytes) for one in shown] == [
        ("all_gather", 2, 3072),
        ("reduce_scatter", 2, 3072),
        ("all_reduce", 4, 6144),
        ("all_to_all", 2, 3072),
    ]


@given(
    latency_s=st.floats(1e-6, 1e-2),
    bytes_per_s=st.floats(1e8, 1e12),
    num_ranks=st.integers(2, 16),
)
def test_finds_the_link_that_the_times_came_from(latency_s, bytes_per_s, num_ranks):
    shapes = [timed(kind, num_ranks, size, 1.0) for kind in KINDS for size in SIZES]
    times = [
        timed(
            one.kind,
            num_ranks,
            one.full_bytes,
            latency_s * one.num_hops + one.wire_bytes / bytes_per_s,
        )
        for one in shapes
    ]
    fit = fit_link(times)
    # Where one part is far below the other, rounding decides about it.
    assert fit.worst_ratio == pytest.approx(1, abs=1e-6)
    if 1e-3 < latency_s * bytes_per_s / MiB < 1e3:
        assert fit.latency_s == pytest.approx(latency_s, rel=1e-3)
        assert fit.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)


@pytest.mark.parametrize("times_s", [(1e-9, 1e-2, 1.0), (1.0, 1.0, 1e-3)])
def test_no_number_is_negative(times_s):
    times = [timed("all_gather", 2, *pair) for pair in zip(SIZES, times_s, strict=True)]
    fit = fit_link(times)
    assert fit.latency_s >= 0
    assert fit.bytes_per_s > 0
    assert fit.worst_ratio > 1.1
