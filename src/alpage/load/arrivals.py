"""Arrivals: when the requests of a load come."""

import math
import random
from itertools import accumulate

from alpage.errors import InvalidValue

_MAX_RATE = 1e6


def arrival_times(
    num_requests: int, rate: float, *, burstiness: float = 1.0, seed: int = 0
) -> list[float]:
    """Return seconds after the start, in order; the same seed gives the same, faster or slower.

    Args:
        num_requests: how many.
        rate: requests a second in the long run; infinite: all at once.
        burstiness: shape of the gamma distribution that the gaps have. 1 is a Poisson process, less
            comes in bursts (the gaps' variance is the Poisson one over this number), much more is
            an even beat.
        seed: of the gaps.

    Raises:
        InvalidValue: a value is out of range.
    """
    if not 0 < rate <= _MAX_RATE and rate != math.inf:
        raise InvalidValue(
            field="rate",
            value=rate,
            limit=f"must be above 0 and at most {_MAX_RATE:,.0f} requests/s, or inf",
            remedy="Choose such a rate",
        )
    if not 0 < burstiness < math.inf:
        raise InvalidValue(
            field="burstiness",
            value=burstiness,
            limit="must be a number above 0",
            remedy="Choose 1 for Poisson arrivals, less for bursts",
        )
    if rate == math.inf:
        return [0.0] * num_requests
    draw = random.Random(seed)
    gaps = (draw.gammavariate(burstiness, 1 / burstiness) for _ in range(num_requests))
    return [time_s / rate for time_s in accumulate(gaps)]
