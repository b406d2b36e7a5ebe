"""Arrivals: known processes, by their means and their spread."""

import math
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from alpage.errors import InvalidValue
from alpage.load import arrival_times

NUM = 20_000


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma_distributed(burstiness):
    times_s = arrival_times(NUM, 5.0, burstiness=burstiness, seed=1)
    gaps = [later - earlier for earlier, later in pairwise([0.0, *times_s])]
    assert min(gaps) >= 0
    assert fmean(gaps) == pytest.approx(0.2, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_counts_of_a_poisson_process_vary_as_much_as_their_mean():
    times_s = arrival_times(NUM, 10.0, seed=2)
    counts = [0] * int(times_s[-1])
    for time_s in times_s:
        if time_s < len(counts):
            counts[int(time_s)] += 1
    assert pstdev(counts) ** 2 == pytest.approx(fmean(counts), rel=0.1)


def test_another_rate_is_the_same_load_faster():
    slow, fast = (arrival_times(50, rate, seed=7) for rate in (1.0, 4.0))
    assert fast == pytest.approx([time_s / 4 for time_s in slow])
    assert arrival_times(50, 1.0, seed=8) != slow


def test_infinite_rate_is_all_at_once():
    assert arrival_times(3, math.inf) == [0.0] * 3


@pytest.mark.parametrize(
    "wrong", [{"rate": 0}, {"rate": -1}, {"rate": math.nan}, {"rate": 1, "burstiness": 0}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(InvalidValue, match=r"must be"):
        arrival_times(1, **wrong)
