"""Pace: how much of prompts a step computes, so that those who wait for a token get it in time."""

from dataclasses import dataclass, replace
from typing import final

from alpage.serve.batch import Batch

# Less would hardly cost less, and prompts must come to an end.
_LEAST_TOKENS = 16
# A step may have had good luck; a slow one is made up for at once.
_MOST_GROWTH = 1.25


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A target for the time of steps that give somebody a token and compute a prompt's beside it.

    A step takes some time for its weights and its context, and more for each token. So tokens in
    proportion to what is left of the target, step after step, come closer to it from either side.

    Attributes:
        target_s: seconds that such a step should take.
        num_chunk_tokens: of prompts, in the next one.
        most_tokens: of prompts, in any.

    >>> pace = Pace(target_s=0.05, num_chunk_tokens=200, most_tokens=512)
    >>> pace.after(0.1, num_chunk_tokens=200).num_chunk_tokens
    100
    """

    target_s: float
    num_chunk_tokens: int
    most_tokens: int

    def after(self, step_s: float, *, num_chunk_tokens: int) -> "Pace":
        """Return the pace after a step that took so long for so many tokens of prompts."""
        factor = min(_MOST_GROWTH, self.target_s / max(step_s, 1e-9))
        wanted = int(num_chunk_tokens * factor)
        if factor > 1:
            # A prompt's end says little about how many tokens more there is time for.
            wanted = max(wanted, self.num_chunk_tokens)
        bounded = max(min(wanted, self.most_tokens), min(_LEAST_TOKENS, self.most_tokens))
        return replace(self, num_chunk_tokens=bounded)


def num_chunk_tokens(batch: Batch) -> int:
    """Return the tokens of prompts in a step where somebody waits for a token; 0 where none does.

    >>> num_chunk_tokens(Batch())
    0
    """
    num_single = sum(len(row.tokens) == 1 and row.num_draws > 0 for row in batch.rows)
    return batch.num_tokens - num_single if num_single else 0
