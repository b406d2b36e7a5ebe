"""Slices: a step's rows cut into parts that follow each other through a pipeline."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alpage.serve.batch import Row

# Fewer tokens than this keep a device no busier than the weights that it has to read for them.
_MIN_TOKENS = 64
# Of S stages, S - 1 of S - 1 + N slices' time is spent on filling the pipeline.
_SLICES_PER_STAGE = 4


def num_slices(num_tokens: int, num_stages: int) -> int:
    """Return into how many slices a step is cut: one without a pipeline or for few tokens.

    >>> [num_slices(num_tokens, 2) for num_tokens in (1, 127, 128, 4096)], num_slices(4096, 1)
    ([1, 1, 2, 8], 1)
    """
    if num_stages == 1:
        return 1
    return max(1, min(num_tokens // _MIN_TOKENS, _SLICES_PER_STAGE * num_stages))


def sliced(rows: Sequence[Row], num_slices: int) -> Iterator[list[Row]]:
    """Yield slices of as nearly equal numbers of tokens as can be; a row may be cut.

    The parts of a row follow each other, and only the last of them draws.
    """
    if num_slices == 1:
        yield list(rows)
        return
    num_tokens = sum(len(row.tokens) for row in rows)
    ends = [num_tokens * (number + 1) // num_slices for number in range(num_slices)]
    place, current = 0, list[Row]()
    for row in rows:
        start = 0
        while start < len(row.tokens):
            end = min(len(row.tokens), start + ends[0] - place)
            current.append(_part(row, start, end))
            place += end - start
            start = end
            if place == ends[0]:
                yield current
                ends, current = ends[1:], []


def _part(row: Row, start: int, end: int) -> Row:
    return replace(
        row,
        start=row.start + start,
        tokens=row.tokens[start:end],
        num_draws=row.num_draws if end == len(row.tokens) else 0,
        prompt_targets=row.prompt_targets[start:end],
    )
