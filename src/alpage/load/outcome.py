"""Outcome: what became of one request; times are in seconds after the start of the load."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request.

    Attributes:
        arrival_s: when it was to be sent; all latencies count from here.
        sent_s: when it was sent.
        ended_s: when its answer had ended, or had failed.
        part_times_s: when something of each continuation came.
        prompt_tokens: as the server counts them; 0 if it did not say.
        output_tokens: as the server counts them, of all continuations; the parts if it did not say.
        failure: what went wrong, as a kind of failure; None: nothing.
    """

    arrival_s: float
    sent_s: float
    ended_s: float
    part_times_s: Sequence[Sequence[float]] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    failure: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token of any continuation; None if nothing came."""
        firsts = [times_s[0] for times_s in self.part_times_s if times_s]
        return min(firsts) - self.arrival_s if firsts else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between what came of a continuation and what came next of it."""
        return [
            later - earlier for times_s in self.part_times_s for earlier, later in pairwise(times_s)
        ]

    @property
    def e2e_s(self) -> float:
        """Seconds to the end of the answer."""
        return self.ended_s - self.arrival_s

    @property
    def normalised_s(self) -> float | None:
        """Seconds for each token of the output (Kwon et al. 2023, section 6.1); None without."""
        return self.e2e_s / self.output_tokens if self.output_tokens else None
