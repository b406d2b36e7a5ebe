"""Metrics: what `GET /metrics` says, in the text format of Prometheus."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, Literal, TypeAlias, final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from alpage.serve.http.tallies import Histogram, Tallies
from alpage.serve.http.visits import Visits
from alpage.serve.kv_memory import KvUsage
from alpage.serve.serves import Serves

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Values by those of their labels.
_Labelled: TypeAlias = Mapping[tuple[str, ...], float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the numbers come from.

    Attributes:
        engine: read from another thread than its own: only for lengths and counts.
        tallies: what its thread counts.
        visits: what was refused.
        usage: KV memory as it was last seen.
    """

    engine: Serves
    tallies: Tallies
    visits: Visits
    usage: KvUsage

    @property
    def preemptions(self) -> _Labelled:
        """Sequences that gave up their pages, by how they get them back."""
        schedulers = [engine.scheduler for engine in self.engine.engines]
        num_swapped = sum(scheduler.num_swap_preemptions for scheduler in schedulers)
        num_all = sum(scheduler.num_preemptions for scheduler in schedulers)
        return {("swap",): num_swapped, ("recompute",): num_all - num_swapped}

    @property
    def num_pages(self) -> int:
        """KV pages there are."""
        return sum(memory.pool.num_pages for memory in self._memories)

    @property
    def num_held_pages(self) -> int:
        """KV pages that requests hold now."""
        return sum(memory.pool.num_held for memory in self._memories)

    @property
    def waste(self) -> float:
        """Share of the places in held pages that hold no token."""
        usage = self.usage
        return 1 - usage.num_filled_slots / usage.num_held_slots if usage.num_held_slots else 0.0

    def count(self, name: Literal["num_running", "num_waiting"]) -> int:
        """Return a count of all schedulers together."""
        return sum(getattr(engine.scheduler, name) for engine in self.engine.engines)

    @property
    def _memories(self) -> Iterator[Any]:
        return (memory for engine in self.engine.engines for memory in engine.scheduler.memories)


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
    name: str, text: str, read: Callable[[Tallies], Histogram], vllm: str | None = None
) -> _Kind:
    return _Kind(
        name=name, type="histogram", help=text, read=lambda of: read(of.tallies), vllm=vllm
    )


_KINDS: Final[Sequence[_Kind]] = (
    _gauge(
        "requests_running",
        "Requests that compute or were preempted.",
        lambda of: of.count("num_running"),
        "num_requests_running",
    ),
    _gauge(
        "requests_waiting",
        "Requests that have not begun.",
        lambda of: of.count("num_waiting"),
        "num_requests_waiting",
    ),
    _gauge(
        "kv_usage_ratio",
        "Share of the KV pages that requests hold.",
        lambda of: of.num_held_pages / of.num_pages,
        "kv_cache_usage_perc",
    ),
    _gauge("kv_pages", "KV pages there are.", lambda of: of.num_pages),
    _gauge("kv_pages_held", "KV pages that requests hold.", lambda of: of.num_held_pages),
    _gauge(
        "kv_pages_shared",
        "KV pages that would be held besides, if nothing were shared.",
        lambda of: of.usage.num_table_entries - of.usage.num_held_pages,
    ),
    _gauge(
        "kv_waste_ratio",
        "Share of the places in held KV pages without a token.",
        lambda of: of.waste,
    ),
    _counter("steps", "Steps that were made.", lambda of: of.tallies.num_steps),
    _counter(
        "prompt_tokens",
        "Tokens of prompts that were computed or found in the prefix cache.",
        lambda of: of.tallies.num_prompt_tokens,
        "prompt_tokens",
    ),
    _counter(
        "cached_prompt_tokens",
        "Tokens of prompts that were found in the prefix cache.",
        lambda of: of.tallies.num_cached_tokens,
        "prompt_tokens_cached",
    ),
    _counter(
        "generated_tokens",
        "Tokens that were drawn.",
        lambda of: of.tallies.num_generated_tokens,
        "generation_tokens",
    ),
    _counter(
        "prefix_cache_queries",
        "Tokens that were looked for in the prefix cache.",
        lambda of: of.tallies.num_queried_tokens,
        "prefix_cache_queries",
    ),
    _counter(
        "prefix_cache_hits",
        "Tokens that were found there.",
        lambda of: of.tallies.num_cached_tokens,
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
        lambda of: of.tallies.recompute_s,
    ),
    _counter(
        "kv_page_copies",
        "KV pages that were copied before they were written (copy-on-write).",
        lambda of: of.tallies.num_page_copies,
    ),
    _Kind(
        name="requests_finished",
        type="counter",
        help="Prompts that ended, by why: stop, length, abort (nobody waits) or error.",
        read=lambda of: {(reason,): n for reason, n in of.tallies.num_finished.items()},
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
        engine: that it has.
        tallies: what its thread counts.
        visits: what was refused.
        model: name of the model, the label of all.
        has_vllm_names: whether what vLLM has too is also there by its names.
    """

    def __init__(
        self, engine: Serves, tallies: Tallies, visits: Visits, *, model: str, has_vllm_names: bool
    ) -> None:
        usage = KvUsage(num_held_pages=0, num_table_entries=0, num_filled_slots=0, num_held_slots=0)
        self._sources = Sources(engine=engine, tallies=tallies, visits=visits, usage=usage)
        self._model = model
        self._has_vllm_names = has_vllm_names
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, usage: KvUsage | None) -> bytes:
        """Return all metrics.

        Args:
            usage: KV memory as it is; None: not known just now.
        """
        if usage is not None:
            self._sources = replace(self._sources, usage=usage)
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as the registry wants them."""
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
