"""Load table: the figures of a load, for people and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from alpage.cli.table import aligned
from alpage.load import Figures
from alpage.load.figures import saturation_rate
from alpage.load.outcome import Outcome
from alpage.load.summary import Estimate, Summary
from alpage.units import format_seconds

# From here on it is worth a word that requests were sent late.
_MUCH_LAG_S = 0.05
LATENCIES = {
    "ttft_s": "time to first token",
    "itl_s": "between tokens",
    "e2e_s": "end to end",
    "normalised_s": "a token of output",
}
_POINTS = ("mean", "p50", "p90", "p99")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A load, as it was and in numbers."""

    figures: Figures
    outcomes: Sequence[Outcome]


def to_json(target: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Return all figures as values that JSON has."""
    return {
        "target": target,
        "runs": [asdict(run.figures) | {"rate": _json_rate(run.figures.rate)} for run in runs],
        "saturation_rate": saturation_rate([run.figures for run in runs]),
    }


def to_table(runs: Sequence[Run]) -> str:
    """Return a run as its figures, or several as a row each."""
    found = [run.figures for run in runs]
    return _one(found[0]) if len(found) == 1 else f"{_rows(found)}\n\n{saturation(found)}"


def saturation(found: Sequence[Figures]) -> str:
    """Return what the figures of several rates say of the highest that can be served."""
    rate = saturation_rate(found)
    if rate is None:
        return "The server kept up with every rate."
    return f"The server keeps up with about {rate:.2g} requests/s."


def facts(figures: Figures) -> list[tuple[str, str]]:
    """Return what there is to say of a load besides its latencies, as names and values."""
    rows = [
        ("requests", f"{figures.num_requests:,}"),
        ("arrivals", _rate(figures.rate, " requests/s")),
        ("prompt tokens", f"{figures.prompt_tokens:,}"),
        ("output tokens", f"{figures.output_tokens:,}"),
        ("wall time", f"{figures.wall_s:.2f} s"),
        ("output tokens per second", f"{figures.output_tokens_per_s:,.1f}"),
        ("answered requests per second", f"{figures.requests_per_s:,.2f}"),
    ]
    if figures.goodput_per_s is not None:
        rows.append(("of these within the SLO", f"{figures.goodput_per_s:,.2f}"))
    if figures.lag_s >= _MUCH_LAG_S:
        rows.append(("latest sending after its time", format_seconds(figures.lag_s)))
    rows += [(f"failed: {kind}", f"{number:,}") for kind, number in figures.failures.items()]
    return rows


def latency_rows(figures: Figures) -> list[tuple[str, list[Estimate]]]:
    """Return mean, median, 90th and 99th percentile of each latency that there is."""
    summaries: list[tuple[str, Summary | None]] = [
        (text, getattr(figures.latencies, name)) for name, text in LATENCIES.items()
    ]
    return [
        (text, [getattr(summary, point) for point in _POINTS])
        for text, summary in summaries
        if summary is not None
    ]


def interval(estimate: Estimate) -> str:
    """Return a duration with its confidence interval, all in one unit."""
    unit, factor = ("s", 1.0) if estimate.value >= 1 else ("ms", 1e3)
    value, low, high = (factor * each for each in (estimate.value, estimate.low, estimate.high))
    digits = 2 if unit == "s" or value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def rate_rows(found: Sequence[Figures]) -> list[list[str]]:
    """Return a heading and a row per load."""
    has_slo = any(figures.goodput_per_s is not None for figures in found)
    names = ("ttft", "itl", "s/token")
    heads = [f"{name} {point}" for name in names for point in ("p50", "p99")]
    rows = [["rate", "answered/s", "tokens/s", *heads, *(["goodput/s"] * has_slo), "failed"]]
    for figures in found:
        latencies = figures.latencies
        cells = [_rate(figures.rate), f"{figures.requests_per_s:.2f}"]
        cells.append(f"{figures.output_tokens_per_s:,.1f}")
        for summary in (latencies.ttft_s, latencies.itl_s, latencies.normalised_s):
            points = () if summary is None else (summary.p50, summary.p99)
            cells += [format_seconds(point.value) for point in points] or ["-", "-"]
        if has_slo:
            cells.append(f"{figures.goodput_per_s or 0.0:.2f}")
        cells.append(f"{sum(figures.failures.values()):,}")
        rows.append(cells)
    return rows


def _one(figures: Figures) -> str:
    heads = ["seconds from arrival", *_POINTS]
    rows = [[text, *map(interval, points)] for text, points in latency_rows(figures)]
    return f"{aligned(facts(figures))}\n\n{aligned([heads, *rows])}"


def _rows(found: Sequence[Figures]) -> str:
    return aligned(rate_rows(found))


def _json_rate(rate: float | None) -> float | str | None:
    return "inf" if rate == float("inf") else rate


def _rate(rate: float | None, unit: str = "") -> str:
    if rate is None:
        return "as the workload says"
    return "all at once" if rate == float("inf") else f"{rate:g}{unit}"
