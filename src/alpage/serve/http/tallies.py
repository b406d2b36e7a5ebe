"""Tallies: what the engine's thread counts of its steps and requests.

Plain numbers that one thread writes and any other may read: a step takes no lock, and is charged
for what changed in it. What a reader sees may lack the last step, or half of it.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, final

from alpage.serve.batch import Batch
from alpage.serve.kv_memory import KvUsage
from alpage.serve.outputs import RequestOutput
from alpage.serve.request import Request
from alpage.serve.serves import Serves

Reason: TypeAlias = Literal["stop", "length", "abort", "error"]

_LATENCIES_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_TOKENS: Final = tuple(2.0**power for power in range(17))


@final
@dataclass(slots=True)
class Histogram:
    """How many values lie between which bounds.

    Attributes:
        bounds: upper ends, rising; what is above the last is counted too.
        counts: of the values up to each bound and above the one before.
        total: their sum.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def __add__(self, other: "Histogram") -> "Histogram":
        """Return the values of both."""
        counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.bounds, counts, self.total + other.total)


def _latency() -> Histogram:
    return Histogram(_LATENCIES_S)


def _lengths() -> Histogram:
    return Histogram(_TOKENS)


@final
@dataclass(slots=True, kw_only=True)
class Counts:
    """All that is counted, since the engine began; names are those of the metrics."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_queried_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_page_copies: int = 0
    recompute_s: float = 0.0
    num_finished: dict[Reason, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error"), 0)
    )
    ttft_s: Histogram = field(default_factory=_latency)
    itl_s: Histogram = field(default_factory=_latency)
    e2e_s: Histogram = field(default_factory=_latency)
    queue_s: Histogram = field(default_factory=_latency)
    prefill_s: Histogram = field(default_factory=_latency)
    step_s: Histogram = field(default_factory=_latency)
    step_tokens: Histogram = field(default_factory=_lengths)
    prompt_tokens: Histogram = field(default_factory=_lengths)
    output_tokens: Histogram = field(default_factory=_lengths)

    def __add__(self, other: "Counts") -> "Counts":
        """Return what was counted by both."""
        names = [each.name for each in fields(self)]
        return Counts(**{name: _sum(getattr(self, name), getattr(other, name)) for name in names})


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {name: number + other[name] for name, number in one.items()}
    return one + other


@final
class Tallies:
    """Counts for one engine; times are in seconds, of the clock of the engine's intake.

    Args:
        engine: whose steps and requests are counted.
    """

    def __init__(self, engine: Serves) -> None:
        self.counts = Counts()
        self._engine = engine
        self._num_dropped_tokens = 0
        # When the step began that admitted a request, until its first token comes.
        self._admitted_s: dict[str, float] = {}
        self._batch: Batch | None = None

    def computed(self, batch: Batch, _usage: Callable[[], KvUsage]) -> None:
        """Note what the step under way computes; see `Observe`."""
        self._batch = batch

    def stepped(self, begin_s: float, end_s: float) -> None:
        """Count the step that was under way, if it computed anything."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        duration_s, num_tokens = end_s - begin_s, batch.num_tokens
        self.counts.num_steps += 1
        self.counts.step_s.add(duration_s)
        self.counts.step_tokens.add(num_tokens)
        self.counts.num_generated_tokens += sum(row.num_draws for row in batch.rows)
        self.counts.num_page_copies += len(batch.copied)
        for opened in batch.opened:
            self._admitted_s[opened.request_id] = begin_s
        num_dropped = sum(
            memory.num_dropped_tokens
            for engine in self._engine.engines
            for memory in engine.scheduler.memories
        )
        if num_dropped != self._num_dropped_tokens:
            # They will be computed again, at about what the tokens of this step took.
            num_new = max(0, num_dropped - self._num_dropped_tokens)
            self.counts.recompute_s += num_new * duration_s / num_tokens
            self._num_dropped_tokens = num_dropped

    def advanced(self, request: Request) -> None:
        """Count what a step gave a request."""
        times_s = request.token_times_s
        if len(times_s) > 1:
            self.counts.itl_s.add(times_s[-1] - times_s[-2])
            return
        first_s, arrival_s = times_s[0], request.arrival_s
        admitted_s = self._admitted_s.pop(request.request_id, first_s)
        group = request.group
        self.counts.queue_s.add(max(0.0, admitted_s - arrival_s))
        if not group.is_prompt_only:
            self.counts.ttft_s.add(first_s - arrival_s)
            self.counts.prefill_s.add(first_s - admitted_s)
        self.counts.num_prompt_tokens += len(group.prompt_tokens)
        if not group.wants_prompt_logprobs:
            self.counts.num_queried_tokens += len(group.prompt_tokens)
        self.counts.num_cached_tokens += group.num_cached_tokens

    def finished(self, output: RequestOutput) -> None:
        """Count a request that has all it asked for."""
        self.counts.num_finished[output.outputs[0].finish_reason] += 1
        self.counts.e2e_s.add(output.metrics.finished_s - output.metrics.arrival_s)
        self.counts.prompt_tokens.add(len(output.prompt_token_ids))
        self.counts.output_tokens.add(sum(len(each.token_ids) for each in output.outputs))

    def ended(self, request_id: str, reason: Reason) -> None:
        """Count a request that ended before it had."""
        self.counts.num_finished[reason] += 1
        self._admitted_s.pop(request_id, None)
