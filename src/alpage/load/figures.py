"""Figures: what came of a load, in numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean
from typing import final

from alpage.load.outcome import Outcome
from alpage.load.summary import Summary, summarise

# By how much the number of unanswered requests may grow in the second half of the arrivals: by a
# share of what arrives then, or by what chance alone makes of few.
_MAX_GROWTH = 0.2
_MAX_DEVIATIONS = 2.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What an answer has to keep to be of use.

    Attributes:
        ttft_s: seconds to the first token at most; None: any.
        itl_s: seconds between tokens at most, averaged over the request; None: any.
    """

    ttft_s: float | None = None
    itl_s: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """Whether a request was answered so."""
        ttft_s, gaps_s = outcome.ttft_s, outcome.gaps_s
        if outcome.failure is not None or ttft_s is None:
            return False
        is_soon = self.ttft_s is None or ttft_s <= self.ttft_s
        return is_soon and (self.itl_s is None or not gaps_s or fmean(gaps_s) <= self.itl_s)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Of the requests that were answered, in seconds from when they were to be sent.

    Attributes:
        ttft_s: to the first token.
        itl_s: between two parts of a stream that bring something: of most servers, two tokens.
        e2e_s: to the end.
        normalised_s: to the end, for each token of the output.
    """

    ttft_s: Summary | None
    itl_s: Summary | None
    e2e_s: Summary | None
    normalised_s: Summary | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a server kept up with arrivals, seen over their second half.

    Attributes:
        completed_per_s: requests that it answered then; of a server that does not keep up, what it
            can do.
        is_kept_up: whether these were about as many as arrived.
    """

    completed_per_s: float
    is_kept_up: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A load in numbers.

    Attributes:
        rate: requests a second that were to arrive; None: all at once, or as a file says.
        num_requests: that were sent.
        failures: how many failed in which way.
        wall_s: from the start to the last end.
        prompt_tokens: of answered requests.
        output_tokens: likewise.
        requests_per_s: that were answered, over `wall_s`.
        output_tokens_per_s: over `wall_s`.
        goodput_per_s: answered requests that met the SLO, over `wall_s`; None without an SLO.
        pace: how the server kept up; None where all arrive at once.
        lag_s: by how much the request that was sent latest after its time was late; much of it
            means that the generator, not the server, was at its limit.
        latencies: of those that were answered.
    """

    rate: float | None
    num_requests: int
    failures: Mapping[str, int]
    wall_s: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float | None
    pace: Pace | None
    lag_s: float
    latencies: Latencies


def to_figures(
    outcomes: Sequence[Outcome], *, rate: float | None, slo: Slo | None, seed: int = 0
) -> Figures:
    """Return the figures of a load of at least one request.

    Args:
        outcomes: what came of its requests.
        rate: as it is to be shown.
        slo: what answers have to keep.
        seed: of the confidence intervals.
    """
    good = [outcome for outcome in outcomes if outcome.failure is None]
    wall_s = max(outcome.ended_s for outcome in outcomes)
    num_output = sum(outcome.output_tokens for outcome in good)
    return Figures(
        rate=rate,
        num_requests=len(outcomes),
        failures=dict(Counter(o.failure for o in outcomes if o.failure is not None)),
        wall_s=wall_s,
        prompt_tokens=sum(outcome.prompt_tokens for outcome in good),
        output_tokens=num_output,
        requests_per_s=len(good) / wall_s,
        output_tokens_per_s=num_output / wall_s,
        goodput_per_s=None if slo is None else sum(map(slo.is_met, outcomes)) / wall_s,
        pace=_pace(outcomes),
        lag_s=max(outcome.sent_s - outcome.arrival_s for outcome in outcomes),
        latencies=_latencies(good, seed),
    )


def saturation_rate(found: Sequence[Figures]) -> float | None:
    """Return the requests a second at which a server stops to keep up.

    That is what it completes at the lowest rate that is too much for it, while requests arrive or
    altogether, but not less than the highest rate at which it kept up. None: none was too much.

    Args:
        found: the figures of several rates.
    """
    kept_up = 0.0
    for figures in sorted(found, key=lambda one: one.rate or 0.0):
        if figures.rate is None or figures.pace is None:
            continue
        if not figures.pace.is_kept_up:
            return max(kept_up, figures.pace.completed_per_s, figures.requests_per_s)
        kept_up = figures.rate
    return None


def _latencies(good: Sequence[Outcome], seed: int) -> Latencies:
    firsts = [outcome.ttft_s for outcome in good]
    normalised = [outcome.normalised_s for outcome in good]
    return Latencies(
        ttft_s=summarise([[value] for value in firsts if value is not None], seed=seed),
        itl_s=summarise([outcome.gaps_s for outcome in good], seed=seed),
        e2e_s=summarise([[outcome.e2e_s] for outcome in good], seed=seed),
        normalised_s=summarise([[value] for value in normalised if value is not None], seed=seed),
    )


def _pace(outcomes: Sequence[Outcome]) -> Pace | None:
    end_s = max(outcome.arrival_s for outcome in outcomes)
    if end_s == 0:
        return None
    middle_s = end_s / 2
    num_arrived = sum(outcome.arrival_s > middle_s for outcome in outcomes)
    num_ended = sum(
        outcome.failure is None and middle_s < outcome.ended_s <= end_s for outcome in outcomes
    )
    return Pace(
        completed_per_s=num_ended / middle_s,
        is_kept_up=num_arrived - num_ended
        <= max(_MAX_GROWTH * num_arrived, _MAX_DEVIATIONS * sqrt(num_arrived)),
    )


def running_over_time(outcomes: Sequence[Outcome]) -> list[tuple[float, int]]:
    """Return when the number of requests that were sent and not answered changed, and to what."""
    steps = sorted(
        [(outcome.sent_s, 1) for outcome in outcomes]
        + [(outcome.ended_s, -1) for outcome in outcomes]
    )
    num_running, found = 0, [(0.0, 0)]
    for time_s, change in steps:
        num_running += change
        found.append((time_s, num_running))
    return [one for one, after in pairwise([*found, (float("inf"), 0)]) if one[0] != after[0]]
