"""Link fit: latency and bandwidth of a link, from times of collectives over it.

The model is the one of K ranks behind a switch: a collective takes a number of hops, each of which
waits for the latency, and in all of them together every rank sends a number of bytes (Thakur et al.
2005, doi:10.1177/1094342005051521):

    time_s = latency_s * num_hops + wire_bytes / bytes_per_s
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from types import MappingProxyType
from typing import Final, final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCollective:
    """A collective, and how long it took.

    Attributes:
        kind: "all_gather", "reduce_scatter", "all_reduce" or "all_to_all".
        num_ranks: ranks that took part, more than one.
        full_bytes: of the whole tensor on one rank: what an all-gather puts out, what the others
            take in.
        time_s: seconds.
    """

    kind: str
    num_ranks: int
    full_bytes: int
    time_s: float

    @property
    def num_hops(self) -> int:
        """Messages that wait for each other."""
        return _ROUNDS[self.kind] * ceil(log2(self.num_ranks))

    @property
    def wire_bytes(self) -> int:
        """Bytes that one rank sends."""
        sent_once = self.full_bytes * (self.num_ranks - 1) // self.num_ranks
        return _ROUNDS[self.kind] * sent_once


# An all-reduce is a reduce-scatter and an all-gather.
_ROUNDS: Final[Mapping[str, int]] = MappingProxyType(
    {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "all_to_all": 1}
)
KINDS = tuple(_ROUNDS)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFit:
    """The link that explains times of collectives best.

    Attributes:
        latency_s: of one hop.
        bytes_per_s: that one rank sends.
        worst_ratio: of the times, the one that the link explains worst: the larger of measured
            and explained over the smaller.
    """

    latency_s: float
    bytes_per_s: float
    worst_ratio: float


def fit_link(times: Sequence[TimedCollective]) -> LinkFit:
    """Return the link with the least squares of relative errors.

    Relative ones, for otherwise the long times, which say nothing of the latency, decide alone.

    Args:
        times: of two sizes at least.
    """
    # Divided by the time, every row says: latency_s * h + s_per_byte * w = 1.
    rows = [(time.num_hops / time.time_s, time.wire_bytes / time.time_s) for time in times]
    sum_h, sum_w = sum(h for h, _ in rows), sum(w for _, w in rows)
    sum_hh, sum_ww = sum(h * h for h, _ in rows), sum(w * w for _, w in rows)
    sum_hw = sum(h * w for h, w in rows)
    determinant = sum_hh * sum_ww - sum_hw * sum_hw
    latency_s = (sum_h * sum_ww - sum_w * sum_hw) / determinant
    s_per_byte = (sum_w * sum_hh - sum_h * sum_hw) / determinant
    # The best pair without a negative number is the best on an edge, if it is not inside.
    if latency_s <= 0 or s_per_byte <= 0:
        latency_s, s_per_byte = 0.0, sum_w / sum_ww
    explained_s = [time.num_hops * latency_s + time.wire_bytes * s_per_byte for time in times]
    ratios = [time.time_s / by_link_s for time, by_link_s in zip(times, explained_s, strict=True)]
    return LinkFit(
        latency_s=latency_s,
        bytes_per_s=1 / s_per_byte,
        worst_ratio=max(max(ratio, 1 / ratio) for ratio in ratios),
    )
