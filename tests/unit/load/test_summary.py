"""Summaries: percentiles like everybody's, and intervals that hold what they promise."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpage.load.summary import _figures, summarise

FINITE = st.floats(-1e6, 1e6)


def by_hand(values, quantile):
    """The percentile as school has it: between the two values next to its place."""
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@settings(max_examples=50)
@given(st.lists(st.lists(FINITE, max_size=5), min_size=1, max_size=8))
def test_figures_are_those_of_all_values(groups):
    values = [value for group in groups for value in group]
    found = summarise(groups)
    if not values:
        assert found is None
        return
    assert found.mean.value == pytest.approx(sum(values) / len(values), abs=1e-6)
    for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert getattr(found, name).value == pytest.approx(by_hand(values, quantile), abs=1e-6)


@given(st.lists(st.tuples(FINITE, st.integers(0, 4)), min_size=1, max_size=20))
def test_counted_values_are_as_values_written_out(pairs):
    pairs = sorted([*pairs, (0.0, 1)])
    values, counts = (np.array(column) for column in zip(*pairs, strict=True))
    written_out = np.repeat(values, counts)
    mean, *quantiles = _figures(values, counts)
    assert mean == pytest.approx(written_out.mean(), abs=1e-6)
    assert quantiles == pytest.approx(np.quantile(written_out, (0.5, 0.9, 0.99)), abs=1e-6)


def test_same_seed_same_interval():
    groups = [[float(number)] for number in range(50)]
    assert summarise(groups, seed=3) == summarise(groups, seed=3)
    assert summarise(groups, seed=3) != summarise(groups, seed=4)


def test_equal_values_leave_no_doubt():
    found = summarise([[2.0]] * 30)
    for estimate in (found.mean, found.p50, found.p90, found.p99):
        assert (estimate.low, estimate.value, estimate.high) == (2.0, 2.0, 2.0)


def hits(draw_groups, true_mean, name="mean", num_samples=80):
    """The share of samples whose interval holds the truth."""
    found = (summarise(draw_groups(random.Random(seed)), seed=seed) for seed in range(num_samples))
    estimates = [getattr(summary, name) for summary in found]
    return sum(each.low <= true_mean <= each.high for each in estimates) / num_samples


def test_intervals_hold_the_truth_of_a_known_distribution():
    def exponential(draw):
        return [[draw.expovariate(1.0)] for _ in range(60)]

    assert 0.85 <= hits(exponential, 1.0) <= 0.99
    assert 0.85 <= hits(exponential, 0.6931, "p50") <= 0.99


def test_values_of_one_request_count_as_one_opinion():
    def requests(draw):
        means = [draw.expovariate(1.0) for _ in range(40)]
        return [[draw.gauss(mean, 0.01) for _ in range(20)] for mean in means]

    def alone(draw):
        return [[value] for group in requests(draw) for value in group]

    assert hits(requests, 1.0) >= 0.85
    assert hits(alone, 1.0) <= 0.5
