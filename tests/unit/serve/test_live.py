"""What onlookers see agrees with the memories' own counters, and changes add up to it."""

from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpage.serve.live import CACHED, HOLDERS, NUM_COLUMNS, OWNER, TOKENS, changes, look, page_cells
from alpage.serve.params import SamplingParams
from fleet_of_fakes import FakeRunner, make_engine, make_fleet, make_intake
from simulated_kv import RandomDraw, Simulation


def applied(table, runs):
    """What a page in a browser makes of changes."""
    table = table.copy()
    for first, count, *cell in np.array(runs).reshape(-1, 2 + NUM_COLUMNS):
        table[first : first + count] = cell
    return table


def cells_of(simulation):
    """All pages as rows, and the shares, in the order of the homes."""
    cells, shares, offset = [], [], 0
    for home, memory in enumerate(simulation.scheduler.memories):
        groups = [g for g in simulation.scheduler.running if g.home == home]
        own, own_shares = page_cells(memory, groups, offset)
        cells.append(own)
        shares += own_shares
        offset += len(own)
    return np.concatenate(cells), shares


def check_agrees(simulation, cells, shares):
    """Every count that the scheduler keeps by itself, and every table page by page."""
    usage = simulation.scheduler.usage()
    is_held = cells[:, HOLDERS] > 0
    assert is_held.sum() == usage.num_held_pages
    assert cells[:, HOLDERS].sum() == usage.num_table_entries
    assert cells[:, TOKENS].sum() == usage.num_filled_slots
    assert (~is_held).sum() == sum(m.num_free for m in simulation.scheduler.memories)
    assert ((cells[:, OWNER] > 0) == is_held).all()
    owners = {}
    for group in sorted(simulation.groups, key=lambda group: group.key):
        for page in (page for sequence in group.sequences for page in sequence.table):
            owners.setdefault(page, []).append(group.key[1] + 1)
    several = {}
    for share in shares:
        for first, count in zip(share.pages[::2], share.pages[1::2], strict=True):
            several |= {page: set(share.owners) for page in range(first, first + count)}
    assert several == {page: set(own) for page, own in owners.items() if len(set(own)) > 1}
    assert all(cells[page, OWNER] == own[0] for page, own in owners.items()), "the first in order"
    for memory in simulation.scheduler.memories:
        for page in memory.pool.indexed_pages():
            assert cells[page, CACHED]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_pages=st.integers(7, 16),
    num_homes=st.sampled_from([1, 2]),
    kinds=st.lists(st.sampled_from(["one", "two", "beams"]), min_size=1, max_size=5),
)
def test_cells_agree_with_the_memories_after_every_step(seed, num_pages, num_homes, kinds):
    simulation = Simulation(
        page_size=2,
        num_pages=num_pages,
        num_host_pages=2,
        max_num_seqs=8,
        max_num_batched_tokens=12,
        num_homes=num_homes,
        swap_s_per_page=0.0,
    )
    for number, kind in enumerate(kinds):
        simulation.add(
            (0, 0, 0, number % 2),
            n=1 if kind == "one" else 2,
            max_new_tokens=4,
            is_lockstep=kind == "beams",
        )
    draw = RandomDraw(Random(seed), 0.05)
    seen = np.zeros((num_pages * num_homes, NUM_COLUMNS), np.int64)
    before = None
    for _ in range(200):
        if not simulation.groups:
            break
        simulation.step(draw)
        cells, shares = cells_of(simulation)
        check_agrees(simulation, cells, shares)
        seen = applied(seen, changes(before, cells))
        assert (seen == cells).all()
        before = cells
    assert not simulation.groups


def test_nothing_changed_is_nothing_said():
    cells = np.ones((5, NUM_COLUMNS), np.int64)
    assert changes(cells, cells) == []
    assert changes(None, cells) == [0, 5, 1, 1, 1, 1]


def run(engine, num_steps):
    for _ in range(num_steps):
        engine.step()


def test_requests_are_told_by_number_and_state():
    engine = make_engine(FakeRunner(0, is_instant=True), make_intake())
    params = SamplingParams(max_tokens=20, ignore_eos=True, n=4, seed=1)
    engine.add(list(range(1, 11)), params)
    engine.add(list(range(1, 11)), SamplingParams(max_tokens=20, ignore_eos=True, n=5, seed=1))
    run(engine, 1)
    seen = look(engine.engines, 7.0)
    first, second = seen.requests
    assert (seen.at_s, seen.num_running, seen.num_waiting) == (7.0, 1, 1)
    assert (first.number, first.state, first.num_sequences) == (1, "decode", 4)
    assert (second.number, second.state, second.num_sequences) == (2, "waiting", 0)
    assert first.num_drawn_tokens == seen.num_drawn_tokens == 4
    assert seen.num_computed_tokens == 10
    # All four hold the prompt's two full pages and the one that is partly filled.
    assert [tuple(cell) for cell in seen.cells_P4[:4, [OWNER, HOLDERS, TOKENS]]] == [
        (1, 4, 4),
        (1, 4, 4),
        (1, 4, 2),
        (0, 0, 0),
    ]
    assert not seen.shares, "all of one request"
    run(engine, 1)
    again = look(engine.engines, 8.0)
    (memory,) = again.memories
    assert memory.num_copied == 3, "of four that write the page, the last keeps it"
    assert set(again.copied[0]) == {3, 4, 5}


def test_prompts_that_begin_alike_share_pages_and_say_so():
    engine = make_engine(FakeRunner(0, is_instant=True), make_intake())
    for _ in range(2):
        engine.add(list(range(1, 13)), SamplingParams(max_tokens=9, ignore_eos=True))
        run(engine, 1)
    (share,) = look(engine.engines, 0.0).shares
    assert share.owners == (1, 2)
    assert share.pages == (0, 2), "the third page's last token has to be computed again"


def test_pages_that_were_cached_and_are_taken_count_as_evicted():
    engine = make_engine(FakeRunner(0, is_instant=True), make_intake())
    for start in range(6):
        engine.add([start * 10 + i % 7 for i in range(100)], SamplingParams(max_tokens=4))
        while engine.has_unfinished:
            engine.step()
    seen = look(engine.engines, 0.0)
    (memory,) = seen.memories
    assert memory.num_free == memory.num_pages == 64
    assert memory.num_evicted > 64
    assert seen.cells_P4[:, CACHED].all()
    assert seen.cells_P4[:, [OWNER, HOLDERS, TOKENS]].sum() == 0


def test_pages_of_replicas_are_rows_one_after_another():
    fleet, _ = make_fleet(2)
    for start in (1, 20):
        fleet.add(list(range(start, start + 8)), SamplingParams(max_tokens=9, ignore_eos=True))
    run(fleet, 2)
    seen = look(fleet.engines, 0.0)
    assert [(m.replica, m.home, m.num_pages) for m in seen.memories] == [(0, 0, 64), (1, 0, 64)]
    assert [seen.cells_P4[row, OWNER] for row in (0, 64)] == [1, 2]
    assert seen.num_steps == 2


def test_no_prompt_is_told():
    engine = make_engine(FakeRunner(0, is_instant=True), make_intake())
    engine.add([41, 42, 43], SamplingParams(max_tokens=5), prompt="a secret", salt="another")
    run(engine, 1)
    told = msgspec.json.encode(look(engine.engines, 0.0), enc_hook=lambda a: a.tolist())
    assert b"secret" not in told
    assert b"another" not in told
    assert b"42" not in told


@pytest.mark.parametrize("num_pages", [0, 30_000])
def test_runs_stay_few(num_pages):
    """Long tables of many requests are told in a few numbers."""
    cells = np.zeros((num_pages, NUM_COLUMNS), np.int64)
    for first in range(0, num_pages, 1000):
        cells[first : first + 900] = (first + 1, 1, 16, 1)
    assert len(changes(None, cells)) == num_pages // 1000 * 6
