"""Metrics: what `GET /metrics` says, in the text format of Prometheus."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias, final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from alpage.serve.http.reports import Report
from alpage.serve.http.tallies import Counts, Histogram
from alpage.serve.http.visits import Visits

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Values by those of their labels.
_Labelled: TypeAlias = Mapping[tuple[str, ...], float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the numbers come from.

    Attributes:
        report: what the engine says.
        visits: what was refused.
        num_restarts: of the engine.
    """

    report: Report
    visits: Visits
    num_restarts: int

    @property
    def counts(self) -> Counts:
        """What the engine has counted."""
        return self.report.counts

    @property
    def preemptions(self) -> _Labelled:
        """Sequences that gave up their pages, by how they get them back."""
        num_swapped = self.report.num_swap_preemptions
        return {("swap",): num_swapped, ("recompute",): self.report.num_preemptions - num_swapped}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A metric.

    Attributes:
        name: without its prefix, and without what Prometheus adds for its type.
        type: of Prometheus.
        help: what it is.
        read: returns it.
        labels: of its values, besides the model's name.
        vllm: the same in vLLM, if it has that; labels only if they are named too.
        vllm_labels: their names there.
    """

    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[Sources], float | _Labelled | Histogram]
    labels: tuple[str, ...] = ()
    vllm: str | None = None
    vllm_labels: tuple[str, ...] = ()


def _gauge(
    name: str, text: str, read: Callable[[Sources], float], vllm: str | None = None
) -> _Kind:
    return _Kind(name=name, type="gauge", help=text, read=read, vllm=vllm)


def _counter(
    name: str, text: str, read: Callable[[Sources], float], vllm: str | None = None
) -> _Kind:
    return _Kind(name=name, type="counter", help=text, read=read, vllm=vllm)


def _histogram(
    name: str, text: str, read: Callable[[Counts], Histogram], vllm: str | None = None
) -> _Kind:
    return _Kind(name=name, type="histogram", help=text, read=lambda of: read(of.counts), vllm=vllm)


_KINDS: Final[Sequence[_Kind]] = (
    _gauge(
        "requests_running",
        "Requests that compute or were preempted.",
        lambda of: of.report.num_running,
        "num_requests_running",
    ),
    _gauge(
        "requests_waiting",
        "Requests that have not begun.",
        lambda of: of.report.num_waiting,
        "num_requests_waiting",
    ),
    _gauge(
        "kv_usage_ratio",
        "Share of the KV pages that requests hold.",
        lambda of: of.report.usage.num_held_pages / of.report.num_pages,
        "kv_cache_usage_perc",
    ),
    _gauge("kv_pages", "KV pages there are.", lambda of: of.report.num_pages),
    _gauge(
        "kv_pages_held", "KV pages that requests hold.", lambda of: of.report.usage.num_held_pages
    ),
    _gauge(
        "kv_pages_shared",
        "KV pages that would be held besides, if nothing were shared.",
        lambda of: of.report.usage.num_table_entries - of.report.usage.num_held_pages,
    ),
    _gauge(
        "kv_waste_ratio",
        "Share of the places in held KV pages without a token.",
        lambda of: of.report.waste,
    ),
    _counter("steps", "Steps that were made.", lambda of: of.counts.num_steps),
    _counter(
        "prompt_tokens",
        "Tokens of prompts that were computed or found in the prefix cache.",
        lambda of: of.counts.num_prompt_tokens,
        "prompt_tokens",
    ),
    _counter(
        "cached_prompt_tokens",
        "Tokens of prompts that were found in the prefix cache.",
        lambda of: of.counts.num_cached_tokens,
        "prompt_tokens_cached",
    ),
    _counter(
        "generated_tokens",
        "Tokens that were drawn.",
        lambda of: of.counts.num_generated_tokens,
        "generation_tokens",
    ),
    _counter(
        "prefix_cache_queries",
        "Tokens that were looked for in the prefix cache.",
        lambda of: of.counts.num_queried_tokens,
        "prefix_cache_queries",
    ),
    _counter(
        "prefix_cache_hits",
        "Tokens that were found there.",
        lambda of: of.counts.num_cached_tokens,
        "prefix_cache_hits",
    ),
    _Kind(
        name="preemptions",
        type="counter",
        help="Sequences that gave up their KV pages, by how they get them back.",
        read=lambda of: of.preemptions,
        labels=("by",),
        vllm="num_preemptions",
    ),
    _counter(
        "preemption_recompute_seconds",
        "Seconds of tokens that preemption makes the engine compute again, at the price of a token "
        "in the step that preempted.",
        lambda of: of.counts.recompute_s,
    ),
    _counter(
        "kv_page_copies",
        "KV pages that were copied before they were written (copy-on-write).",
        lambda of: of.counts.num_page_copies,
    ),
    _Kind(
        name="requests_finished",
        type="counter",
        help="Prompts that ended, by why: stop, length, abort (nobody waits) or error.",
        read=lambda of: {(reason,): n for reason, n in of.counts.num_finished.items()},
        labels=("reason",),
        vllm="request_success",
        vllm_labels=("finished_reason",),
    ),
    _Kind(
        name="refusals",
        type="counter",
        help="HTTP requests that were told an error, by status and code.",
        read=lambda of: of.visits.num_refused.copy(),
        labels=("status", "code"),
    ),
    _counter(
        "engine_restarts",
        "Engines that were started because the one before was lost.",
        lambda of: of.num_restarts,
    ),
    _histogram(
        "time_to_first_token_seconds",
        "From the engine's having a prompt to its first token.",
        lambda of: of.ttft_s,
        "time_to_first_token_seconds",
    ),
    _histogram(
        "inter_token_latency_seconds",
        "Between two tokens of a prompt's continuations.",
        lambda of: of.itl_s,
        "inter_token_latency_seconds",
    ),
    _histogram(
        "request_seconds",
        "From the engine's having a prompt to its last token.",
        lambda of: of.e2e_s,
        "e2e_request_latency_seconds",
    ),
    _histogram(
        "queue_seconds",
        "From the engine's having a prompt to the first step that computes of it.",
        lambda of: of.queue_s,
        "request_queue_time_seconds",
    ),
    _histogram(
        "prefill_seconds",
        "From that step to the first token.",
        lambda of: of.prefill_s,
        "request_prefill_time_seconds",
    ),
    _histogram(
        "request_prompt_tokens",
        "Tokens of a prompt.",
        lambda of: of.prompt_tokens,
        "request_prompt_tokens",
    ),
    _histogram(
        "request_generated_tokens",
        "Tokens of a prompt's continuations.",
        lambda of: of.output_tokens,
        "request_generation_tokens",
    ),
    _histogram(
        "step_tokens",
        "Tokens that a step computes.",
        lambda of: of.step_tokens,
        "iteration_tokens_total",
    ),
    _histogram("step_seconds", "What a step takes.", lambda of: of.step_s),
)


@final
class Metrics(Collector):
    """The metrics of one service, in a registry of their own.

    Args:
        visits: what was refused.
        model: name of the model, the label of all.
        engine_pid: returns the number of the engine's process, if it has one of its own.
        has_vllm_names: whether what vLLM has too is also there by its names.
    """

    def __init__(
        self,
        visits: Visits,
        *,
        model: str,
        engine_pid: Callable[[], int | None],
        has_vllm_names: bool,
    ) -> None:
        self._visits = visits
        self._model = model
        self._has_vllm_names = has_vllm_names
        self._sources: Sources | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        if engine_pid() is not None:
            ProcessCollector("alpage_engine", lambda: engine_pid() or 0, registry=self._registry)

    def text(self, report: Report, num_restarts: int) -> bytes:
        """Return all metrics.

        Args:
            report: what the engine says.
            num_restarts: of the engine.
        """
        self._sources = Sources(report=report, visits=self._visits, num_restarts=num_restarts)
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as the registry wants them."""
        assert self._sources is not None, "it is asked by `text`"
        for kind in _KINDS:
            value = kind.read(self._sources)
            yield _family(kind, f"alpage_{kind.name}", value, kind.labels, {"model": self._model})
            if self._has_vllm_names and kind.vllm is not None:
                if isinstance(value, Mapping) and not kind.vllm_labels:
                    value = sum(value.values())
                common = {"model_name": self._model, "engine": "0"}
                yield _family(kind, f"vllm:{kind.vllm}", value, kind.vllm_labels, common)


def _family(
    kind: _Kind,
    name: str,
    value: float | _Labelled | Histogram,
    labels: Sequence[str],
    common: Mapping[str, str],
) -> Metric:
    names, values = [*common, *labels], list(common.values())
    if isinstance(value, Histogram):
        family = HistogramMetricFamily(name, kind.help, labels=names)
        ends = [*map(str, map(float, value.bounds)), "+Inf"]
        buckets = list(zip(ends, accumulate(value.counts), strict=True))
        family.add_metric(values, buckets, value.total)
        return family
    make = GaugeMetricFamily if kind.type == "gauge" else CounterMetricFamily
    found = make(name, kind.help, labels=names)
    for own, number in (value if isinstance(value, Mapping) else {(): value}).items():
        found.add_metric([*values, *own], number)
    return found
