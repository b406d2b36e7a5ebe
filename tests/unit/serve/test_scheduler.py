"""The scheduler's behaviour, scenario by scenario; the simulation checks what each step reads."""

import itertools

import pytest

from alpage.serve.batch import Batch
from alpage.serve.kv_memory import KvMemory, PreemptionCost
from alpage.serve.pages import PagePool
from alpage.serve.sequence import Group, Sequence
from simulated_kv import Simulation


def _tokens(batch: Batch) -> dict[str, int]:
    """New tokens of each request."""
    num_tokens: dict[str, int] = {}
    for row in batch.rows:
        num_tokens[row.request_id] = num_tokens.get(row.request_id, 0) + len(row.tokens)
    return num_tokens


def _fresh(num_tokens: int, start: int = 0) -> list[int]:
    return list(range(start, start + num_tokens))


# -- the budget ------------------------------------------------------------------------------------


def test_prompts_that_fit_begin_in_one_step_in_order_of_arrival():
    simulation = Simulation(num_pages=32)
    for number in range(3):
        simulation.add(_fresh(10, 100 * number))
    batch = simulation.step()
    assert _tokens(batch) == {"0": 10, "1": 10, "2": 10}
    assert [opened.request_id for opened in batch.opened] == ["0", "1", "2"]


def test_there_is_no_step_without_requests():
    assert Simulation(num_pages=1).step() == Batch()


def test_a_prompt_cut_by_the_budget_goes_on_in_the_next_step():
    simulation = Simulation(num_pages=32, max_num_batched_tokens=16)
    for number in range(2):
        simulation.add(_fresh(24, 100 * number))
    steps = [simulation.step() for _ in range(4)]
    assert [_tokens(batch) for batch in steps] == [
        {"0": 16},
        {"0": 8, "1": 8},
        {"0": 1, "1": 15},
        {"0": 1, "1": 1},
    ]
    assert [[row.num_draws for row in batch.rows] for batch in steps] == [
        [0],
        [1, 0],
        [1, 0],
        [1, 1],
    ]


def test_a_long_prompt_leaves_a_token_to_everyone_who_decodes():
    simulation = Simulation(num_pages=64, max_num_batched_tokens=8)
    for number in range(3):
        simulation.add([number], max_new_tokens=40)
    simulation.step()
    simulation.add(_fresh(60, 100), priority=-1)
    for _ in range(5):
        assert _tokens(simulation.step()) == {"0": 1, "1": 1, "2": 1, "3": 5}


def test_a_sequence_that_comes_back_takes_no_token_that_another_waits_for():
    simulation = Simulation(
        num_pages=32, num_host_pages=4, max_num_seqs=4, max_num_batched_tokens=4, swap_s_per_page=0
    )
    back = simulation.add([1, 2], max_new_tokens=20, priority=-2)
    simulation.add([3, 4], max_new_tokens=20)
    simulation.step()
    simulation.add(_fresh(30, 100), priority=-1)
    assert _tokens(simulation.step()) == {"0": 1, "1": 1, "2": 2}
    memory = simulation.scheduler.memories[0]
    memory.shed_all(back.leader)
    simulation.runner.run(Batch(swapped_out=memory.take_moves()[0]), {})
    assert back.leader.host_pages
    assert _tokens(simulation.step()) == {"0": 1, "1": 1, "2": 2}


# -- sharing ---------------------------------------------------------------------------------------


def test_a_cached_prompt_is_shared_but_for_its_last_token_and_the_tail_is_copied():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(11), max_new_tokens=1)
    first = simulation.run()[0].rows[0]
    again = simulation.add(_fresh(11), max_new_tokens=1)
    batch = simulation.step()
    (row,) = batch.rows
    assert again.num_cached_tokens == 10
    assert (row.start, row.tokens) == (10, (10,))
    assert row.pages[:2] == first.pages[:2]
    assert [move.source for move in batch.copied] == [first.pages[2]]


def test_a_prompt_of_full_pages_computes_its_last_token_again():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(8), max_new_tokens=1)
    simulation.run()
    again = simulation.add(_fresh(8), max_new_tokens=1)
    batch = simulation.step()
    assert again.num_cached_tokens == 7
    assert batch.num_tokens == len(batch.copied) == 1


def test_equal_prompts_in_one_step_share_full_pages_but_no_page_being_filled():
    simulation = Simulation(num_pages=16)
    for _ in range(2):
        simulation.add(_fresh(11))
    batch = simulation.step()
    assert [(row.start, len(row.tokens)) for row in batch.rows] == [(0, 11), (8, 3)]
    assert batch.rows[0].pages[:2] == batch.rows[1].pages[:2]
    assert batch.copied == ()


def test_outputs_are_found_by_the_next_turn_of_a_conversation():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(6), max_new_tokens=6)
    simulation.run()
    _, told = max(simulation.texts, key=lambda text: len(text[1]))
    turn = simulation.add([*told, 7, 7])
    simulation.run()
    assert turn.num_cached_tokens == len(told) == 11


def test_continuations_share_the_prompt_and_all_but_the_last_to_write_copy_its_tail():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(6), n=3)
    first = simulation.step()
    assert [row.num_draws for row in first.rows] == [3]
    second = simulation.step()
    full, tail = first.rows[0].pages
    slot = first.rows[0].slot
    assert [fork.source for fork in second.forked] == [slot, slot]
    assert [row.index for row in second.rows] == [0, 1, 2]
    assert [move.source for move in second.copied] == [tail, tail]
    tables = [s.table for group in simulation.groups for s in group.sequences]
    assert {table[0] for table in tables} == {full}
    assert len({table[1] for table in tables}) == 3
    assert tables[-1][1] == tail
    usage = simulation.scheduler.usage()
    assert (usage.num_held_pages, usage.num_table_entries) == (4, 6)
    assert (usage.num_filled_slots, usage.num_held_slots) == (4 + 3 * 3, 16)


def test_continuations_at_the_end_of_a_page_copy_nothing():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(8), n=3)
    simulation.step()
    assert simulation.step().copied == ()


def test_beams_that_die_give_their_pages_to_those_that_fork():
    simulation = Simulation(num_pages=16)
    group = simulation.add(_fresh(4), n=3, max_new_tokens=12, is_lockstep=True)
    for batch in itertools.islice(iter(simulation.step, None), 10):
        assert len(batch.rows) in (1, 3)
    assert simulation.pool.num_held <= group.num_pages_at_most(4)
    simulation.run()


def test_a_continuation_that_ends_at_once_leaves_its_slot_to_the_next_and_the_runner_knows():
    simulation = Simulation(num_pages=16)
    group = simulation.add(_fresh(6), n=3)
    draws = iter([None, 1, 2])
    simulation.step(lambda _: next(draws))
    assert [s.index for s in group.sequences] == [1, 2]
    assert [row.index for row in simulation.step().rows] == [1, 2]


def test_other_salts_share_nothing():
    simulation = Simulation(num_pages=16)
    simulation.add(_fresh(8), salt="one")
    simulation.run()
    other, same = (simulation.add(_fresh(8), salt=salt) for salt in ("other", "one"))
    simulation.run()
    assert (other.num_cached_tokens, same.num_cached_tokens) == (0, 7)


def test_a_prompt_that_is_scored_takes_no_hits_and_leaves_pages():
    simulation = Simulation(num_pages=16)
    for _ in range(2):
        scored = simulation.add(_fresh(8), wants_prompt_logprobs=True)
        simulation.run()
        assert scored.num_cached_tokens == 0
        assert simulation.scored[scored] == set(_fresh(7, 1))
    plain = simulation.add(_fresh(8))
    simulation.run()
    assert plain.num_cached_tokens == 7


def test_without_a_prefix_cache_there_are_no_hits():
    simulation = Simulation(num_pages=16, has_prefix_cache=False)
    for _ in range(2):
        group = simulation.add(_fresh(8))
        simulation.run()
    assert group.num_cached_tokens == 0


def test_a_request_that_does_not_fit_leaves_what_it_would_have_shared():
    simulation = Simulation(num_pages=7)
    simulation.add(_fresh(8), max_new_tokens=1)
    simulation.run()
    simulation.add(_fresh(12, 100), max_new_tokens=12)
    simulation.step()
    waiting = simulation.add([*_fresh(8), *_fresh(8, 50)], max_new_tokens=4)
    simulation.step()
    assert simulation.scheduler.num_waiting == 1
    assert simulation.pool.num_held == 4
    simulation.run()
    assert waiting.num_cached_tokens < 8, "the first one needed some of these pages"


def test_an_abort_does_not_make_the_cache_forget_a_full_page():
    pool = PagePool(4, 4)
    cost = PreemptionCost(swap_s_per_page=1, recompute_s_per_token=1)
    memory = KvMemory(pool, PagePool(0, 4), cost)
    one = Sequence(index=0, slot=0, tokens=_fresh(6))
    memory.grow(one, 5)
    memory.computed(one, 5, "")
    memory.take_moves()
    other = Sequence(index=1, slot=1, tokens=[0, 1, 9])
    memory.adopt_shared(other, one)
    assert other.num_computed == 2
    memory.retire(other, "")
    assert pool.match(_fresh(4), 4).num_tokens == 4


# -- the end, and who comes first ------------------------------------------------------------------


def _waiting() -> tuple[Simulation, Group]:
    simulation = Simulation(num_pages=8, max_num_seqs=1)
    simulation.add(_fresh(4))
    group = simulation.add(_fresh(4, 50))
    simulation.step()
    return simulation, group


def _in_prompt() -> tuple[Simulation, Group]:
    simulation = Simulation(num_pages=16, max_num_batched_tokens=8)
    group = simulation.add(_fresh(20))
    simulation.step()
    return simulation, group


def _decoding() -> tuple[Simulation, Group]:
    simulation = Simulation(num_pages=16)
    group = simulation.add(_fresh(6), n=3, max_new_tokens=9)
    simulation.step()
    simulation.step()
    return simulation, group


def _just_forked() -> tuple[Simulation, Group]:
    simulation = Simulation(num_pages=16)
    group = simulation.add(_fresh(6), n=3)
    simulation.step()
    return simulation, group


@pytest.mark.parametrize("state", [_waiting, _in_prompt, _decoding, _just_forked])
def test_an_abort_gives_everything_back(state):
    simulation, group = state()
    simulation.finish(group)
    simulation.check()
    assert group.sequences == group.slots == []
    for other in list(simulation.groups):
        simulation.finish(other)
    assert simulation.pool.num_held == simulation.host.num_held == 0
    assert simulation.scheduler.num_waiting == simulation.scheduler.num_running == 0
    assert simulation.step() == Batch()
    # The slots are as good as new.
    simulation.add([1, 2], n=simulation.max_num_seqs, max_new_tokens=2)
    simulation.run()


def test_priority_comes_before_arrival_and_arrival_breaks_ties():
    simulation = Simulation(num_pages=32, max_num_seqs=1)
    for number, priority in enumerate([0, 1, -1, 0, 1]):
        simulation.add([number], max_new_tokens=1, priority=priority)
    order = [opened.request_id for batch in simulation.run() for opened in batch.opened]
    assert order == ["2", "0", "3", "1", "4"]


def test_a_request_waits_for_a_bounded_number_of_more_urgent_ones():
    simulation = Simulation(num_pages=8, max_num_seqs=2, patience=5)
    patient = simulation.add(_fresh(12), max_new_tokens=4, priority=2)
    simulation.add([1], max_new_tokens=2)
    opened: list[str] = []
    while patient in simulation.groups:
        for _ in range(2):  # more than can be served
            simulation.add([simulation.num_arrivals], max_new_tokens=2)
        opened += [opening.request_id for opening in simulation.step().opened]
    num_before = opened.index(patient.request_id)
    assert 5 <= num_before <= 2 * 5


def test_who_needs_many_slots_is_not_passed_by_who_needs_few():
    simulation = Simulation(num_pages=32, max_num_seqs=4)
    simulation.add([1], max_new_tokens=5)
    simulation.step()
    simulation.add([2], n=4, max_new_tokens=2)
    simulation.add([3], max_new_tokens=1)
    order = [opened.request_id for batch in simulation.run() for opened in batch.opened]
    assert order == ["1", "2"]


def test_requests_spread_over_homes_and_go_where_their_prefix_is():
    simulation = Simulation(num_pages=16, num_homes=2)
    first = simulation.add(range(20))
    second = simulation.add(range(100, 120))
    simulation.step()
    assert (first.home, second.home) == (0, 1)
    simulation.run()
    again = simulation.add(range(100, 121))
    simulation.step()
    assert (again.home, again.num_cached_tokens) == (1, 20)


def test_a_full_home_does_not_keep_requests_from_another():
    """The prefix lies at home 0, which is full: the prompt is computed anew at home 1."""
    simulation = Simulation(num_pages=7, num_homes=2)
    simulation.add(range(16), max_new_tokens=8)
    simulation.step()
    other = simulation.add(range(17), max_new_tokens=7)
    simulation.step()
    assert (other.home, other.num_cached_tokens) == (1, 0)
    simulation.run()
