"""Preemption: who gives pages up, how they come back, and that nobody reads what has moved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.batch import Batch, Move
from alpage.serve.kv_memory import KvMemory, PreemptionCost
from alpage.serve.pages import PagePool
from alpage.serve.sequence import Group, Sequence
from simulated_kv import Simulation


def _fresh(num_tokens: int, start: int = 0) -> list[int]:
    return list(range(start, start + num_tokens))


def _until_preempted(simulation: Simulation) -> Batch:
    for _ in range(50):
        batch = simulation.step()
        if simulation.scheduler.num_preemptions:
            return batch
    raise AssertionError("nobody was preempted")


def _crowded(**rest) -> tuple[Simulation, list[Group]]:
    """Three requests that begin with two pages each and will need four or five, in nine pages."""
    simulation = Simulation(num_pages=9, **rest)
    groups = [simulation.add(_fresh(7 - i, 100 * i), max_new_tokens=12) for i in range(3)]
    return simulation, groups


def test_the_last_in_order_loses_its_tail_first():
    simulation, groups = _crowded()
    _until_preempted(simulation)
    assert [group.leader.is_running for group in groups] == [True, True, False]
    assert len(groups[2].leader.table) == 2, "one page was missing, one page was taken"
    assert groups[2].leader.num_computed == 8


def test_the_one_that_comes_last_by_priority_is_taken_from():
    simulation = Simulation(num_pages=9, patience=10)
    groups = [simulation.add(_fresh(7, 100 * i), max_new_tokens=12, priority=-i) for i in range(3)]
    _until_preempted(simulation)
    assert [group.leader.is_running for group in groups] == [False, True, True]


def test_continuations_are_taken_from_before_the_group_is():
    simulation = Simulation(num_pages=10)
    first = simulation.add(_fresh(5), max_new_tokens=20)
    group = simulation.add(_fresh(7, 50), n=2, max_new_tokens=12)
    _until_preempted(simulation)
    assert first.leader.is_running
    assert [s.is_running for s in group.sequences] == [True, False]
    assert len(group.sequences[1].table) >= 1, "what it shares it keeps"
    simulation.run()


@pytest.mark.parametrize(("swap_s_per_page", "is_swapped"), [(3.9, True), (4.1, False)])
def test_a_full_page_is_swapped_if_that_is_cheaper_than_four_tokens(swap_s_per_page, is_swapped):
    simulation, _ = _crowded(num_host_pages=9, swap_s_per_page=swap_s_per_page)
    for _ in range(40):
        if simulation.groups:
            simulation.step()
    assert simulation.scheduler.num_preemptions > 0
    assert (simulation.num_swapped_in > 0) == is_swapped
    assert simulation.num_swapped_in == simulation.scheduler.memories[0].num_swapped_pages


def test_without_host_pages_tokens_are_computed_again():
    simulation, groups = _crowded(swap_s_per_page=0)
    _until_preempted(simulation)
    assert groups[2].leader.host_pages == []
    simulation.run()


def test_who_was_preempted_comes_back_before_anybody_new():
    simulation, groups = _crowded(has_prefix_cache=False)
    _until_preempted(simulation)
    simulation.add([5], max_new_tokens=1)
    while not groups[2].leader.is_running:
        assert simulation.scheduler.num_waiting == 1
        simulation.step()
    simulation.run()


def test_a_scored_prompt_is_scored_whole_though_it_is_preempted():
    simulation = Simulation(num_pages=10, max_num_batched_tokens=8)
    simulation.add(_fresh(4), max_new_tokens=30)
    scored = simulation.add(_fresh(20, 100), max_new_tokens=12, wants_prompt_logprobs=True)
    for _ in range(40):
        if scored not in simulation.groups:
            break
        simulation.step()
    assert simulation.scheduler.num_preemptions > 0
    assert simulation.scored[scored] == set(_fresh(19, 1))


def test_what_comes_back_in_a_step_is_not_taken_away_in_the_same():
    # The memory asserts it: the move to the host would run before the move from it.
    simulation = Simulation(
        num_pages=8, num_host_pages=1, max_num_batched_tokens=10, swap_s_per_page=1.5
    )
    simulation.add([0] * 5, n=2, max_new_tokens=10)
    simulation.step(lambda _: 0)
    simulation.add([0] * 8, n=4, max_new_tokens=4)
    simulation.run(lambda _: 0)
    assert simulation.num_swapped_in > 0


def test_a_host_page_given_up_in_a_step_is_the_target_of_one_move_only():
    cost = PreemptionCost(swap_s_per_page=1, recompute_s_per_token=1)
    memory = KvMemory(PagePool(8, 4), PagePool(1, 4), cost)
    one, other = (Sequence(index=0, slot=i, tokens=_fresh(12, 50 * i)) for i in range(2))
    for sequence in (one, other):
        memory.grow(sequence, 8)
        memory.computed(sequence, 8, "")
    memory.take_moves()
    last = other.table[-1]
    memory.shed_tail(one, 1)
    memory.shed_all(one)  # no host page for the second: the first is useless too
    memory.shed_tail(other, 1)
    swapped_out, _, _ = memory.take_moves()
    assert swapped_out == (Move(last, 0),)
    assert memory.num_swapped_pages == 1


def test_a_page_that_is_still_to_be_copied_is_no_target_of_a_swap():
    cost = PreemptionCost(swap_s_per_page=0, recompute_s_per_token=1)
    memory = KvMemory(PagePool(3, 4), PagePool(1, 4), cost)
    one, other = (Sequence(index=0, slot=i, tokens=_fresh(9, 50 * i)) for i in range(2))
    memory.grow(one, 4)
    memory.computed(one, 4, "")
    memory.grow(other, 4)
    memory.computed(other, 4, "")
    memory.take_moves()
    memory.shed_all(other)
    memory.release(one)
    memory.take_moves()
    # Both come back in one step: one to a part of its old page, other from the host.
    one.tokens[2:] = [7, 7]
    memory.adopt_cached(one, "", has_tail=True)
    memory.grow(one, 1)
    memory.swap_in(other)
    _, swapped_in, copied = memory.take_moves()
    assert copied[0].source not in {copied[0].target, swapped_in[0].target}
    assert len({copied[0].source, copied[0].target, swapped_in[0].target}) == 3


def test_what_is_on_the_host_is_given_up_if_what_comes_before_it_is_lost():
    pool, host = PagePool(8, 4), PagePool(8, 4)
    memory = KvMemory(pool, host, PreemptionCost(swap_s_per_page=0, recompute_s_per_token=1))
    one = Sequence(index=0, slot=0, tokens=_fresh(11))
    memory.grow(one, 6)
    memory.computed(one, 6, "")
    other = Sequence(index=1, slot=1, tokens=_fresh(5))
    memory.adopt_shared(other, one)  # the first page only: the second is being filled
    memory.take_moves()
    memory.shed_all(one)
    assert (one.num_computed, one.host_start, one.num_swapped) == (0, 4, 2)
    memory.release(other)
    pool.reset()
    memory.adopt_cached(one, "", has_tail=False)
    memory.swap_in(one)
    _, swapped_in, _ = memory.take_moves()
    assert (swapped_in, one.num_computed) == ((), 0)
    assert (pool.num_held, host.num_held) == (0, 0)


@pytest.mark.parametrize("swap_s_per_page", [0, 100])
def test_an_abort_while_preempted_gives_everything_back(swap_s_per_page):
    simulation, groups = _crowded(num_host_pages=9, swap_s_per_page=swap_s_per_page)
    _until_preempted(simulation)
    assert bool(groups[2].leader.host_pages) == (swap_s_per_page == 0)
    simulation.finish(groups[2])
    simulation.check()
    assert simulation.host.num_held == 0
    simulation.run()
    assert simulation.pool.num_held == 0


@given(
    page_size=st.integers(1, 4),
    num_prompt_tokens=st.integers(1, 10),
    n=st.integers(1, 4),
    max_new_tokens=st.integers(1, 10),
    num_cached=st.integers(0, 12),
    spare_budget=st.integers(0, 6),
    is_lockstep=st.booleans(),
)
def test_a_request_alone_finishes_in_the_pages_it_was_accepted_for(
    page_size, num_prompt_tokens, n, max_new_tokens, num_cached, spare_budget, is_lockstep
):
    group = Group("", (0, 0), (0,) * num_prompt_tokens, n, max_new_tokens)
    simulation = Simulation(
        num_pages=group.num_pages_at_most(page_size),
        page_size=page_size,
        max_num_seqs=n,
        max_num_batched_tokens=n + spare_budget,
    )
    earlier = (*[0] * num_cached, 1)
    if len(earlier) < num_prompt_tokens + max_new_tokens:
        simulation.add(earlier, max_new_tokens=1)
        simulation.run()
    simulation.add(group.prompt_tokens, n=n, max_new_tokens=max_new_tokens, is_lockstep=is_lockstep)
    simulation.run(lambda tokens: 0 if len(tokens) % 3 else 1)
    assert simulation.scheduler.num_preemptions == 0
    assert simulation.pool.num_held == 0


def test_the_same_requests_make_the_same_steps():
    def batches() -> list[Batch]:
        simulation, _ = _crowded(num_host_pages=3, swap_s_per_page=3.0)
        simulation.add(_fresh(5), n=3, is_lockstep=True)
        return simulation.run()

    assert batches() == batches()
