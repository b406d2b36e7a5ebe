"""Load report: the figures of a load with plots, as one HTML file that needs nothing beside it."""

from collections.abc import Iterator, Sequence
from html import escape

from alpage.cli.load_plot import Curve, Plot, draw
from alpage.cli.load_table import Run, facts, interval, latency_rows, rate_rows, saturation
from alpage.cli.page import to_page
from alpage.load import Figures, Slo
from alpage.load.figures import running_over_time
from alpage.load.outcome import Outcome
from alpage.units import format_seconds

_MAX_POINTS = 400
_BINS = 60
_FOOTER = (
    "Latencies count from when a request was to be sent, not from when it was, so that a server "
    "that keeps its clients waiting gains nothing by it. Intervals hold 95 % of what a sample "
    "drawn again would say; tokens of one request are drawn together. Seconds a token of output "
    "are the normalised latency of Kwon et al. 2023."
)


def to_html(target: str, runs: Sequence[Run], slo: Slo | None) -> str:
    """Return the report.

    Args:
        target: what was asked.
        runs: what came of each load.
        slo: what answers had to keep, if anything.
    """
    title = f"Load on {target}"
    goal = "" if slo is None else f"<p>{escape(_slo(slo))}</p>"
    header = (
        '<p class="eyebrow">alpage bench serve</p>'
        f"<h1>{'Load' if len(runs) == 1 else 'Loads'} <span>on {escape(target)}</span></h1>{goal}"
    )
    parts = [_sweep([run.figures for run in runs])] if len(runs) > 1 else []
    parts += [_run(run) for run in runs]
    return to_page(title, header, "".join(parts), _FOOTER)


def _slo(slo: Slo) -> str:
    parts = []
    if slo.ttft_s is not None:
        parts.append(f"the first token within {format_seconds(slo.ttft_s)}")
    if slo.itl_s is not None:
        parts.append(f"{format_seconds(slo.itl_s)} between tokens")
    return f"An answer is of use with {' and '.join(parts)}."


def _sweep(found: Sequence[Figures]) -> str:
    heads, *rows = rate_rows(found)
    finite = [(one, one.rate) for one in found if one.rate is not None and one.rate < float("inf")]
    curves = [
        Curve(
            name=name,
            points=[
                (rate, getattr(one.latencies.normalised_s, point).value)
                for one, rate in finite
                if one.latencies.normalised_s is not None
            ],
            has_dots=True,
        )
        for name, point in (("median", "p50"), ("99th percentile", "p99"))
    ]
    served = [
        Curve(name="answered", points=[(r, o.requests_per_s) for o, r in finite], has_dots=True)
    ]
    if any(one.goodput_per_s is not None for one in found):
        points = [(rate, one.goodput_per_s or 0.0) for one, rate in finite]
        served.append(Curve(name="within the SLO", points=points, has_dots=True))
    rate = "arriving requests/s"
    latency = Plot(title="Latency against rate", across=rate, up="seconds a token", curves=curves)
    throughput = Plot(title="Answers against rate", across=rate, up="requests/s", curves=served)
    return (
        '<section aria-labelledby="rates"><h2 id="rates">Rates</h2>'
        f'<p class="lead">{escape(saturation(found))}</p>'
        f'<div class="card">{_table(heads, rows)}</div>'
        f"{_card(latency)}{_card(throughput)}</section>"
    )


def _run(run: Run) -> str:
    figures = run.figures
    rate = figures.rate
    name = "Arrivals as recorded" if rate is None else f"{rate:g} requests/s"
    name = "All at once" if rate == float("inf") else name
    rows = [[text, *map(interval, points)] for text, points in latency_rows(figures)]
    heads = ["from arrival", "mean", "median", "90 %", "99 %"]
    return (
        f'<section><h2>{escape(name)}</h2><p class="lead">{_lead(figures)}</p>{_tiles(figures)}'
        f'<div class="card"><h3>Latencies</h3>{_table(heads, rows)}</div>'
        f"{''.join(_card(plot) for plot in _plots(run.outcomes))}"
        f'<div class="card"><h3>All figures</h3>{_table(["", ""], facts(figures))}</div></section>'
    )


def _lead(figures: Figures) -> str:
    failed = sum(figures.failures.values())
    return f"{figures.num_requests:,} requests, {failed:,} of which failed"


def _tiles(figures: Figures) -> str:
    ttft, itl = figures.latencies.ttft_s, figures.latencies.itl_s
    tiles = [
        ("Output", f"{figures.output_tokens_per_s:,.0f}", "tokens/s"),
        ("Answers", f"{figures.requests_per_s:,.2f}", "requests/s"),
        ("First token", "-" if ttft is None else format_seconds(ttft.p50.value), "median"),
        ("Between tokens", "-" if itl is None else format_seconds(itl.p50.value), "median"),
    ]
    if figures.goodput_per_s is not None:
        tiles[1] = ("Goodput", f"{figures.goodput_per_s:,.2f}", "requests/s within the SLO")
    cells = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><span>{text}</span></dd></div>"
        for name, value, text in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _plots(outcomes: Sequence[Outcome]) -> Iterator[Plot]:
    good = [outcome for outcome in outcomes if outcome.failure is None]
    firsts = [(one.arrival_s, one.ttft_s) for one in good if one.ttft_s is not None]
    ends = [(one.arrival_s, one.e2e_s) for one in good]
    yield Plot(
        title="Latency of each request",
        across="seconds, when it arrived",
        up="seconds",
        curves=[
            Curve(name="to the first token", points=_thinned(firsts), is_joined=False),
            Curve(name="to the end", points=_thinned(ends), is_joined=False),
        ],
    )
    yield Plot(
        title="Requests under way",
        across="seconds",
        up="requests",
        curves=[Curve(name="sent and not answered", points=_stairs(running_over_time(outcomes)))],
    )
    yield Plot(
        title="Output",
        across="seconds",
        up="parts/s",
        curves=[Curve(name="parts of streams that came", points=_rates(good))],
    )
    for title, samples, unit, factor in (
        ("To the first token", [value for _, value in firsts], "seconds", 1.0),
        ("Between tokens", [gap for one in good for gap in one.gaps_s], "milliseconds", 1e3),
    ):
        yield Plot(
            title=title,
            across=unit,
            up="share of all",
            curves=[Curve(name="at most as long", points=_shares(samples, factor))],
        )


def _shares(samples: Sequence[float], factor: float) -> list[tuple[float, float]]:
    """Return the share of a sample that is at most as large as each of its values."""
    ordered = sorted(samples)
    return _thinned(
        [(factor * value, (place + 1) / len(ordered)) for place, value in enumerate(ordered)]
    )


def _rates(outcomes: Sequence[Outcome]) -> list[tuple[float, float]]:
    """Return what came a second, in equal parts of the time."""
    times_s = [time for one in outcomes for part in one.part_times_s for time in part]
    if not times_s:
        return []
    width_s = max(times_s) / _BINS
    counts = [0] * _BINS
    for time_s in times_s:
        counts[min(_BINS - 1, int(time_s / width_s))] += 1
    return [(width_s * (place + 0.5), count / width_s) for place, count in enumerate(counts)]


def _stairs(changes: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for time_s, number in changes:
        points += [(time_s, points[-1][1] if points else 0.0), (time_s, float(number))]
    return points


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return every so many of the points, and the last, so that a page stays small."""
    step = -(-len(points) // _MAX_POINTS) or 1
    return [*points[:-1][::step], *points[-1:]]


def _card(plot: Plot) -> str:
    return f'<div class="card"><h3>{escape(plot.title)}</h3>{draw(plot)}</div>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table>{top}<tbody>{lines}</tbody></table></div>'
