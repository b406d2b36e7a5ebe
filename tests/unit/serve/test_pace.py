"""The pace of prompts beside sequences that wait for a token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.batch import Batch, Row
from alpage.serve.pace import Pace, num_chunk_tokens
from simulated_kv import Simulation


def row(num_tokens: int, *, num_draws: int) -> Row:
    return Row(
        request_id="0",
        slot=0,
        index=0,
        start=0,
        tokens=(1,) * num_tokens,
        page_start=0,
        pages=(),
        num_draws=num_draws,
    )


@given(
    fixed_s=st.floats(0.0, 0.02),
    token_s=st.floats(1e-5, 1e-3),
    first=st.integers(16, 4096),
)
def test_steps_come_close_to_the_target_from_either_side(fixed_s, token_s, first):
    target_s = 0.05
    pace = Pace(target_s=target_s, num_chunk_tokens=first, most_tokens=4096)
    for _ in range(60):
        num_tokens = pace.num_chunk_tokens
        step_s = fixed_s + token_s * num_tokens
        pace = pace.after(step_s, num_chunk_tokens=num_tokens)
    wanted = min(4096, max(16, (target_s - fixed_s) / token_s))
    # Tokens are whole, and rounded down in every step.
    assert 0.75 * wanted - 1 <= pace.num_chunk_tokens <= 1.01 * wanted + 1


def test_there_is_always_time_for_some_of_a_prompt():
    pace = Pace(target_s=0.001, num_chunk_tokens=512, most_tokens=512)
    for _ in range(20):
        pace = pace.after(1.0, num_chunk_tokens=pace.num_chunk_tokens)
    assert pace.num_chunk_tokens == 16


def test_the_short_end_of_a_prompt_does_not_lower_the_pace():
    pace = Pace(target_s=0.05, num_chunk_tokens=200, most_tokens=512)
    assert pace.after(0.02, num_chunk_tokens=3) == pace


@pytest.mark.parametrize(
    ("rows", "num_tokens"),
    [
        ((row(1, num_draws=1), row(1, num_draws=1)), 0),
        ((row(1, num_draws=1), row(30, num_draws=0)), 30),
        ((row(30, num_draws=1),), 0),
    ],
)
def test_only_steps_in_which_somebody_waits_are_measured(rows, num_tokens):
    assert num_chunk_tokens(Batch(rows=rows)) == num_tokens


def test_prompts_are_cut_to_the_pace_only_beside_somebody_who_waits():
    simulation = Simulation(num_pages=64, max_num_batched_tokens=64)
    simulation.scheduler.num_chunk_tokens = 8
    simulation.add(list(range(40)))
    assert simulation.step().num_tokens == 40
    simulation.add(list(range(100, 140)))
    assert [simulation.step().num_tokens for _ in range(3)] == [9, 9, 9]
