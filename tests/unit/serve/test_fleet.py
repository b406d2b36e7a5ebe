"""Fleets: every request ends once, wherever it is and whoever answers first or fails."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.errors import InvalidValue, OutOfMemory, RankLost
from alpage.serve.fleet import Fleet, route
from alpage.serve.params import SamplingParams
from fleet_of_fakes import FakeRunner, lost, make_engine, make_fleet, make_intake

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def finish(fleet):
    """Step until all is done; return what every step returned."""
    steps = []
    while fleet.has_unfinished:
        steps.append(fleet.step())
        assert len(steps) < 10_000, "somebody starves"
    return steps


def homes(fleet, requests):
    return [
        next(n for n, engine in enumerate(fleet.engines) if engine.holds(request.request_id))
        for request in requests
    ]


# -- routing ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=5))
def test_a_request_goes_where_it_would_be_done_first(replicas):
    queued, own = zip(*replicas, strict=True)
    chosen = route(queued, own)
    totals = [a + b for a, b in replicas]
    assert all(totals[chosen] <= total for total in totals)
    assert all(totals[chosen] < total for total in totals[:chosen])


def test_equal_requests_are_dealt_out_in_turns():
    fleet, _ = make_fleet(3)
    requests = [fleet.add([number, 1, 2], GREEDY) for number in range(7)]
    assert homes(fleet, requests) == [0, 1, 2, 0, 1, 2, 0]


def test_a_prompt_goes_where_its_prefix_is_cached_unless_more_is_waiting_there():
    fleet, _ = make_fleet(2)
    system = [*range(40)]
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    fleet.add([1], GREEDY)  # takes replica 0, so that the prefix comes to lie in replica 1
    fleet.add(system, short)
    finish(fleet)
    first = fleet.add([*system, 50], short)
    again = fleet.add([*system, 51], short)
    assert homes(fleet, [first, again]) == [1, 1]
    # A prompt whose every token is to be scored saves nothing there.
    scored = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
    assert homes(fleet, [fleet.add([*system, 52], scored)]) == [0]
    for number in range(12):
        fleet.add([*system, 53, number], short)
    counts = Counter(homes(fleet, [fleet.add([*system, 54], GREEDY) for _ in range(10)]))
    assert counts[0] > 0, "a replica idles beside one that drowns"


def test_what_is_computed_or_over_weighs_no_more():
    fleet, _ = make_fleet(2)
    fleet.add([*range(16)], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    late = fleet.add([1, 2], SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    for _ in range(2):
        fleet.step()
    # 56 tokens are less 16, 52 are less 2.
    assert homes(fleet, [fleet.add([9], GREEDY)]) == [0]
    fleet.abort(late.request_id)
    assert homes(fleet, [fleet.add([9], GREEDY)]) == [1]
    finish(fleet)
    assert [replica.num_queued_tokens for replica in fleet._replicas] == [0, 0]


# -- steps -----------------------------------------------------------------------------------------


def test_nobody_waits_for_a_slow_replica():
    """The first answers every time, the second never until the first has nothing left."""
    fleet, runners = make_fleet(2, wait=lambda signals, _timeout_s: [min(signals)])
    requests = [fleet.add([1, 2, 3], GREEDY), fleet.add([4, 5, 6], GREEDY)]
    while not requests[0].is_finished:
        fleet.step()
    assert [runner.num_steps for runner in runners] == [8, 0]
    assert runners[1].batch is not None, "its step has begun all the same"
    finish(fleet)
    assert requests[1].is_finished


def test_of_several_answers_the_oldest_comes_first():
    fleet, runners = make_fleet(3)
    for number in range(3):
        fleet.add([number], GREEDY)
    for number in range(9):
        before = [runner.num_steps for runner in runners]
        fleet.step()
        assert [r.num_steps - b for r, b in zip(runners, before, strict=True)].index(
            1
        ) == number % 3


def test_a_runner_that_need_not_wait_is_taken_without_waiting():
    def never(_signals, _timeout_s):
        raise AssertionError

    intake = make_intake()
    engines = [make_engine(FakeRunner(n, is_instant=True), intake) for n in range(2)]
    fleet = Fleet(engines, intake, wait=never)
    requests = [fleet.add([1, 2], GREEDY) for _ in range(4)]
    finish(fleet)
    assert all(request.is_finished for request in requests)


def test_the_observer_sees_each_step_with_its_own_memory():
    fleet, runners = make_fleet(2)
    fleet.add([*range(10)], GREEDY)
    fleet.add([1], GREEDY)
    seen = []
    while fleet.has_unfinished:
        fleet.step(lambda batch, usage: seen.append((batch, usage())))
    assert len(seen) == sum(runner.num_steps for runner in runners) == 16
    for batch, usage in seen:
        assert usage.num_filled_slots == batch.rows[0].context
        assert usage.num_held_pages == -(-batch.rows[0].context // 4)


def test_what_is_drawn_does_not_depend_on_the_number_of_replicas():
    def rules(num_replicas):
        fleet, runners = make_fleet(num_replicas, seed=5)
        requests = [fleet.add([1], SamplingParams(max_tokens=2)) for _ in range(9)]
        known = {name: rule.seed for runner in runners for name, rule in runner.rules.items()}
        return [(request.request_id, known[request.request_id]) for request in requests]

    alone = rules(1)
    assert rules(2) == rules(4) == alone
    assert len({name for name, _ in alone}) == len({seed for _, seed in alone}) == 9


# -- what goes wrong -------------------------------------------------------------------------------


def test_names_are_unique_over_the_fleet():
    fleet, _ = make_fleet(2)
    fleet.add([1], GREEDY, request_id="mine")
    with pytest.raises(InvalidValue, match="request_id='mine'"):
        fleet.add([1], GREEDY, request_id="mine")
    finish(fleet)
    fleet.add([1], GREEDY, request_id="mine")


def test_what_is_abandoned_is_over_with_the_next_step():
    fleet, _ = make_fleet(2)
    requests = [fleet.add([number], GREEDY) for number in range(3)]
    fleet.step()
    for request in requests[:2]:
        fleet.abandon(request.request_id)
    fleet.step()
    assert [request.is_finished for request in requests] == [True, True, False]
    finish(fleet)
    fleet.abandon(requests[2].request_id)
    assert not fleet.has_unfinished


def test_a_lost_replica_takes_its_requests_with_it_and_no_others():
    fleet, runners = make_fleet(3)
    requests = [fleet.add([number], GREEDY) for number in range(6)]
    fleet.step()
    runners[1].error = lost()
    with pytest.raises(RankLost, match="replica 1, rank=1: its process died; its requests are"):
        finish(fleet)
    assert [request.is_finished for request in requests] == [False, True, False] * 2
    later = [fleet.add([9], GREEDY) for _ in range(4)]
    assert len(fleet.engines) == 2
    finish(fleet)
    reasons = [r.output().outputs[0].finish_reason for r in [*requests, *later]]
    assert reasons == ["length", "abort", "length"] * 2 + ["length"] * 4


def test_the_last_replica_is_never_parted_with():
    fleet, runners = make_fleet(2)
    for runner in runners:
        runner.error = lost()
    for words in ("replica 0, rank=1", "^rank=1: its process died. Start", "^rank=1"):
        fleet.add([1], GREEDY)
        fleet.add([2], GREEDY)
        with pytest.raises(RankLost, match=words):
            finish(fleet)
    assert len(fleet.engines) == 1


def test_a_failed_step_ends_the_requests_of_its_replica_only():
    fleet, runners = make_fleet(2)
    requests = [fleet.add([number], GREEDY) for number in range(4)]
    runners[0].error = MemoryError()
    with pytest.raises(OutOfMemory, match="max_num_batched_tokens"):
        finish(fleet)
    runners[0].error = None
    assert [request.is_finished for request in requests] == [True, False, True, False]
    assert len(fleet.engines) == 2
    fleet.add([7], GREEDY)
    finish(fleet)
    assert requests[1].output().outputs[0].finish_reason == "length"


def test_who_does_not_answer_in_time_is_told_so():
    waited = []

    def nobody(signals, timeout_s):
        waited.append((list(signals), timeout_s))
        return []

    fleet, runners = make_fleet(2, wait=nobody)
    for number in range(2):
        fleet.add([number], GREEDY)
    runners[1].due, runners[1].error = 0.0, lost()
    with pytest.raises(RankLost, match="replica 1"):
        fleet.step()
    assert waited == [([0, 1], 0.0)]


def test_who_is_interrupted_while_waiting_loses_nothing():
    answers = iter([KeyboardInterrupt])

    def wait(signals, _timeout_s):
        for error in answers:
            raise error
        return signals

    fleet, _ = make_fleet(2, wait=wait)
    requests = [fleet.add([number], GREEDY) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        fleet.step()
    finish(fleet)
    assert all(r.output().outputs[0].finish_reason == "length" for r in requests)


def test_an_abort_between_the_halves_of_a_step_frees_the_pages_and_loses_nobody():
    intake = make_intake()
    engine = make_engine(FakeRunner(0), intake)
    gone, stays = engine.add([*range(9)], GREEDY, request_id="a"), engine.add([1, 2], GREEDY)
    assert engine.begin()
    engine.abort("a")
    # The name is free again; what was computed for the other of that name is not for this one.
    again = engine.add([5], GREEDY, request_id="a")
    assert engine.end() == [stays]
    finish(engine)
    assert gone.output().outputs[0].token_ids == ()
    assert [len(r.output().outputs[0].token_ids) for r in (stays, again)] == [8, 8]
    assert engine.scheduler.memories[0].pool.num_held == 0
