"""Batch: what one step moves, computes and samples, as plain data from the scheduler to the runner.

The runner acts in the order of the fields: rows of its state are forked and opened, pages go out to
the host, come in, and are copied; then the model runs over the new tokens of all rows at once.
"""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """A slot that a new request begins to use."""

    slot: int
    request_id: str
    tokens: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Forked:
    """A slot that goes on from the state of another, or from its own, as continuation `index`."""

    source: int
    slot: int


@final
@dataclass(frozen=True, slots=True)
class Move:
    """One page's content goes from `source` to `target`."""

    source: int
    target: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """New tokens of one sequence.

    Attributes:
        request_id: the request it belongs to.
        slot: the sequence's row in the runner's state.
        index: which of the request's continuations it is.
        start: position of the first of `tokens`.
        tokens: the tokens whose keys and values are computed, at least one.
        page_start: entry of the page table from which `pages` replaces it.
        pages: entries of the page table that the runner does not know yet.
        num_draws: tokens to draw behind the last one; 0 while a prompt is not complete, or where
            nothing is drawn behind it.
        prompt_targets: the tokens that follow each of `tokens` in the prompt, if their
            log-probabilities are wanted.
        allowed: what may be drawn, a bit for each token, the first one the lowest of a byte; empty
            where all may.
    """

    request_id: str
    slot: int
    index: int
    start: int
    tokens: tuple[int, ...]
    page_start: int
    pages: tuple[int, ...]
    num_draws: int
    prompt_targets: tuple[int, ...] = ()
    allowed: bytes = b""

    @property
    def context(self) -> int:
        """Tokens that the sequence holds after the step."""
        return self.start + len(self.tokens)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step. See the module for the order of its parts."""

    forked: tuple[Forked, ...] = ()
    opened: tuple[Opened, ...] = ()
    swapped_out: tuple[Move, ...] = ()
    swapped_in: tuple[Move, ...] = ()
    copied: tuple[Move, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the model runs over."""
        return sum(len(row.tokens) for row in self.rows)
