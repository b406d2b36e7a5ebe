"""Figures: latencies from the time of arrival, goodput, and where a server stops to keep up."""

import heapq

import pytest

from alpage.load import Slo, arrival_times, to_figures
from alpage.load.figures import running_over_time, saturation_rate
from alpage.load.outcome import Outcome


def outcome(arrival_s=0.0, *, wait_s=0.0, times_s=(0.5, 0.6, 0.7), **fields):
    start_s = arrival_s + wait_s
    return Outcome(
        arrival_s=arrival_s,
        sent_s=start_s,
        ended_s=start_s + times_s[-1],
        part_times_s=[[start_s + time_s for time_s in times_s]],
        prompt_tokens=10,
        output_tokens=len(times_s),
        **fields,
    )


def test_latencies_count_from_the_time_of_arrival():
    found = to_figures([outcome(1.0, wait_s=2.0)], rate=1.0, slo=None).latencies
    assert found.ttft_s.p50.value == pytest.approx(2.5)
    assert found.e2e_s.p50.value == pytest.approx(2.7)
    assert found.normalised_s.p50.value == pytest.approx(0.9)
    assert found.itl_s.p50.value == pytest.approx(0.1)


def test_failures_have_no_latency_and_no_tokens():
    found = to_figures(
        [outcome(), outcome(failure="HTTP 429"), outcome(failure="HTTP 429")], rate=None, slo=None
    )
    assert found.failures == {"HTTP 429": 2}
    assert (found.num_requests, found.output_tokens) == (3, 3)
    assert found.requests_per_s == pytest.approx(1 / 0.7)
    nothing = to_figures([outcome(failure="no connection")], rate=None, slo=None)
    assert nothing.latencies.ttft_s is None
    assert nothing.goodput_per_s is None


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        (Slo(), 3),
        (Slo(ttft_s=0.5), 2),
        (Slo(itl_s=0.1001), 2),
        (Slo(ttft_s=0.5, itl_s=0.1001), 1),
        (Slo(ttft_s=0.1), 0),
    ],
)
def test_goodput_counts_what_meets_the_slo(slo, num_good):
    outcomes = [
        outcome(),
        outcome(wait_s=0.3),
        outcome(times_s=(0.4, 0.8, 1.0)),
        outcome(failure="stream cut off"),
    ]
    found = to_figures(outcomes, rate=1.0, slo=slo)
    assert found.goodput_per_s == pytest.approx(num_good / found.wall_s)


def queue(rate, *, capacity, num_requests=200, seed=0):
    """What a server with that many places, each taking a second a request, makes of a load."""
    free, outcomes = [0.0] * capacity, []
    for arrival_s in arrival_times(num_requests, rate, seed=seed):
        end_s = max(arrival_s, heapq.heappop(free)) + 1.0
        heapq.heappush(free, end_s)
        outcomes.append(
            Outcome(arrival_s=arrival_s, sent_s=arrival_s, ended_s=end_s, output_tokens=1)
        )
    return to_figures(outcomes, rate=rate, slo=None)


@pytest.mark.parametrize("seed", range(5))
def test_saturation_is_what_a_queue_can_serve(seed):
    found = [queue(rate, capacity=5, seed=seed) for rate in (1, 2, 3, 9, 18)]
    assert [figures.pace.is_kept_up for figures in found] == [True] * 3 + [False] * 2
    assert saturation_rate(found) == pytest.approx(5, rel=0.1)
    assert saturation_rate(found[:3]) is None


def test_load_that_comes_at_once_has_no_pace():
    found = to_figures([outcome(), outcome()], rate=float("inf"), slo=None)
    assert found.pace is None
    assert saturation_rate([found]) is None


def test_requests_under_way_over_time():
    outcomes = [outcome(0.0), outcome(0.25), outcome(2.0)]
    assert [(round(t, 2), n) for t, n in running_over_time(outcomes)] == [
        (0.0, 1),
        (0.25, 2),
        (0.7, 1),
        (0.95, 0),
        (2.0, 1),
        (2.7, 0),
    ]
