"""Slices follow each other and are together what was cut."""

from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.batch import Row
from alpage.serve.slices import num_slices, sliced


def row_of(slot, start, num_tokens, num_draws, is_scored):
    tokens = tuple(range(start, start + num_tokens))
    return Row(
        request_id=str(slot),
        slot=slot,
        index=0,
        start=start,
        tokens=tokens,
        page_start=0,
        pages=(),
        num_draws=num_draws,
        prompt_targets=tuple(token + 1 for token in tokens[:-1]) if is_scored else (),
    )


ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=6,
).map(lambda rows: [row_of(slot, *row) for slot, row in enumerate(rows)])


@given(ROWS, st.integers(1, 8))
def test_slices_are_the_rows_cut_evenly(rows, number):
    num_tokens = sum(len(row.tokens) for row in rows)
    number = min(number, num_tokens)
    slices = list(sliced(rows, number))
    sizes = [sum(len(row.tokens) for row in part) for part in slices]
    assert len(slices) == number
    assert sum(sizes) == num_tokens
    assert max(sizes) - min(sizes) <= 1
    for row in rows:
        parts = [part for some in slices for part in some if part.slot == row.slot]
        assert [part.start for part in parts] == [part.tokens[0] for part in parts]
        assert sum((part.tokens for part in parts), ()) == row.tokens
        assert sum((part.prompt_targets for part in parts), ()) == row.prompt_targets
        assert [part.num_draws for part in parts] == [0] * (len(parts) - 1) + [row.num_draws]


def test_few_tokens_are_one_slice():
    assert num_slices(100, 4) == 1
    assert num_slices(10_000, 4) == 16
