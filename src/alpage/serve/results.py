"""Results: what a step gave, as plain data from the runner to the decoders."""

from dataclasses import dataclass, replace
from typing import final

from alpage.serve.outputs import TokenLogprobs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What one row of a step gave.

    Attributes:
        tokens: one per draw; none for beams.
        logprobs: of each token, if asked for.
        candidates: for beams: the likeliest (token, log-probability), the best first.
        prompt_logprobs: of the prompt tokens behind each of the row's tokens, if asked for.
        state: what the model makes of the prompt's last token, if asked for.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    candidates: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    state: tuple[float, ...] = ()

    def followed_by(self, other: "RowResult") -> "RowResult":
        """Return what a row gave whose later part gave the other, which alone draws."""
        return replace(other, prompt_logprobs=self.prompt_logprobs + other.prompt_logprobs)
