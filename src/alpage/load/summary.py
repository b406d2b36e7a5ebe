"""Summary: the mean and the percentiles of a sample, and how sure one can be of them.

Confidence intervals are bootstrapped: the sample is drawn again with repetition, and what 95 % of
such draws give lies between the two ends (Efron 1979). Values that belong to one request are drawn
together, since the gaps between its tokens are not independent of each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

import numpy as np
from numpy.typing import NDArray

_QUANTILES = (0.5, 0.9, 0.99)
_NUM_DRAWS = 1000
# Of all draws together: a sample of millions gets fewer of them, and is sure enough without.
_MAX_DRAWN_VALUES = 50_000_000
_MIN_DRAWS = 50
_TAIL = 0.025


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of a sample, and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A sample in numbers."""

    mean: Estimate
    p50: Estimate
    p90: Estimate
    p99: Estimate


def summarise(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Summary | None:
    """Return what a sample amounts to; None if there is no value in it.

    Args:
        groups: values, those together that are not independent of each other.
        seed: of the bootstrap.
    """
    groups = [group for group in groups if group]
    if not groups:
        return None
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    rng = np.random.default_rng(seed)
    num_draws = min(_NUM_DRAWS, max(_MIN_DRAWS, _MAX_DRAWN_VALUES // len(values)))
    draws = np.empty((num_draws, 1 + len(_QUANTILES)))
    for row in draws:
        drawn = rng.integers(len(groups), size=len(groups))
        row[:] = _figures(values, np.bincount(drawn, minlength=len(groups))[owners])
    lows, highs = np.quantile(draws, (_TAIL, 1 - _TAIL), axis=0)
    found = _figures(values, np.ones(len(values), dtype=np.int64))
    mean, p50, p90, p99 = (
        Estimate(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(found, lows, highs, strict=True)
    )
    return Summary(mean=mean, p50=p50, p90=p90, p99=p99)


def _figures(values: NDArray[np.float64], counts: NDArray[np.int64]) -> list[float]:
    """Return the mean and the quantiles of sorted values, each as often as it counts."""
    ends = np.cumsum(counts)
    num_values = int(ends[-1])
    figures = [float(values @ counts) / num_values]
    for quantile in _QUANTILES:
        # Between the two values next to it, by where it lies between them.
        place = quantile * (num_values - 1)
        below, above = np.searchsorted(ends, [int(place), ceil(place)], side="right")
        share = place - int(place)
        figures.append(float((1 - share) * values[below] + share * values[above]))
    return figures
