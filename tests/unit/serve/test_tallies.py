"""Tallies: what a step adds to them, and how little it takes."""

import time
from types import SimpleNamespace

import pytest

from alpage.serve.batch import Batch, Move, Opened, Row
from alpage.serve.http.tallies import Histogram, Tallies

NUM_RUNNING = 32
MAX_STEP_S = 1e-4


def test_histogram_counts_what_is_at_most_a_bound():
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5, 100):
        histogram.add(value)
    assert histogram.counts == [2, 1, 1, 2]
    assert histogram.total == 112


def row(name, **fields):
    fields = {"start": 9, "tokens": (1,), "num_draws": 1} | fields
    return Row(request_id=name, slot=0, index=0, page_start=0, pages=(), **fields)


def request(name, *times_s, arrival_s=0.0, num_prompt=10, num_cached=4):
    group = SimpleNamespace(
        prompt_tokens=(1,) * num_prompt,
        num_cached_tokens=num_cached,
        wants_prompt_logprobs=False,
        is_prompt_only=False,
    )
    return SimpleNamespace(
        request_id=name, token_times_s=list(times_s), arrival_s=arrival_s, group=group
    )


@pytest.fixture
def memory():
    return SimpleNamespace(num_dropped_tokens=0)


@pytest.fixture
def tallies(memory):
    engine = SimpleNamespace(scheduler=SimpleNamespace(memories=[memory]))
    return Tallies(SimpleNamespace(engines=(engine,)))


def step(tallies, batch, begin_s, end_s):
    tallies.computed(batch, pytest.fail)
    tallies.stepped(begin_s, end_s)


def test_a_request_waits_is_computed_and_goes_on(tallies):
    opened = (Opened(0, "a", (1,) * 10),)
    step(tallies, Batch(opened=opened, rows=(row("a", num_draws=0),)), 2.0, 2.5)
    step(tallies, Batch(rows=(row("a"),), copied=(Move(1, 2),)), 2.5, 3.0)
    tallies.advanced(request("a", 3.0, arrival_s=0.5))
    step(tallies, Batch(rows=(row("a"),)), 3.0, 3.125)
    tallies.advanced(request("a", 3.0, 3.125, arrival_s=0.5))
    assert (
        tallies.counts.num_steps,
        tallies.counts.num_generated_tokens,
        tallies.counts.num_page_copies,
    ) == (3, 2, 1)
    assert (tallies.counts.num_prompt_tokens, tallies.counts.num_cached_tokens) == (10, 4)
    assert tallies.counts.queue_s.total == 1.5
    assert tallies.counts.prefill_s.total == 1.0
    assert tallies.counts.ttft_s.total == 2.5
    assert tallies.counts.itl_s.total == 0.125
    assert tallies.counts.step_s.total == 1.125
    assert sum(tallies.counts.step_tokens.counts) == 3


def test_steps_that_compute_nothing_are_none(tallies):
    tallies.stepped(0.0, 1.0)
    assert tallies.counts.num_steps == 0


def test_preemption_costs_what_its_tokens_cost(tallies, memory):
    memory.num_dropped_tokens = 30
    step(tallies, Batch(rows=(row("a", tokens=(1,) * 10),)), 0.0, 0.5)
    assert tallies.counts.recompute_s == pytest.approx(1.5)
    step(tallies, Batch(rows=(row("a"),)), 0.5, 1.0)
    assert tallies.counts.recompute_s == pytest.approx(1.5)


def test_what_ended_early_is_forgotten(tallies):
    step(tallies, Batch(opened=(Opened(0, "a", (1,)),), rows=(row("a", num_draws=0),)), 0.0, 1.0)
    tallies.ended("a", "abort")
    assert tallies.counts.num_finished["abort"] == 1
    assert not tallies._admitted_s


def test_counting_takes_next_to_nothing_of_a_step(tallies):
    names = [f"request-{number}" for number in range(NUM_RUNNING)]
    batch = Batch(rows=tuple(map(row, names)))
    requests = [request(name, 1.0, 1.02) for name in names]
    times_s = []
    for _ in range(300):
        begin_s = time.perf_counter()
        step(tallies, batch, 1.0, 1.02)
        for each in requests:
            tallies.advanced(each)
        times_s.append(time.perf_counter() - begin_s)
    assert sorted(times_s)[len(times_s) // 2] < MAX_STEP_S
