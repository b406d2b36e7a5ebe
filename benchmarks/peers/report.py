"""Report: the tables that turns come to."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Final

from benchmarks.peers.engines import BEAMS, ENGINES
from benchmarks.peers.goals import Ratio, to_ratios
from benchmarks.peers.turns import Turn
from benchmarks.results_file import to_markdown

# Heading, workload (None: any), figure, how many of its units make one of the heading's, decimals.
_COLUMNS: Final[Sequence[tuple[str, str | None, str, float, int]]] = (
    ("W1 tokens/s", "w1", "output_tokens_per_s", 1, 0),
    ("W2 first token ms", "w2", "ttft_s", 1e-3, 0),
    ("W2 between tokens ms", "w2", "itl_s", 1e-3, 1),
    ("W3 s", "w3", "wall_s", 1, 1),
    ("W4 s", "w4", "wall_s", 1, 1),
    *((f"beams {name.removeprefix('beam')} s", name, "wall_s", 1, 2) for name in BEAMS),
    ("start to first token s", None, "start_s", 1, 1),
    ("peak memory MB (W1)", "w1", "peak_rss_bytes", 1e6, 0),
)
_NONE = "-"


def to_text(turns: Sequence[Turn], absent: Mapping[str, str]) -> str:
    """Return all there is to say, in Markdown.

    Args:
        turns: of all rounds; at least one.
        absent: engines that were not there, and what is missing.
    """
    num_rounds = max(turn.round for turn in turns)
    parts = [f"Medians of up to {num_rounds} rounds." if num_rounds > 1 else "One round."]
    tables = (_engine_rows(turns), _online_rows(turns), _ratio_rows(to_ratios(turns)))
    parts += [to_markdown(rows).rstrip() for rows in tables if rows]
    parts += [f"{name} was not there: no {what}." for name, what in absent.items()]
    failures = {(turn.engine, turn.workload): turn.failure for turn in turns if turn.failure}
    parts += [f"{name} failed on {what}: {why}" for (name, what), why in failures.items()]
    return "\n\n".join(parts) + "\n"


def _engine_rows(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return a row of each engine, as far as it was measured outside W5."""
    offline = [turn for turn in turns if turn.figures and not turn.workload.startswith("w5")]
    names = [name for name in ENGINES if any(turn.engine == name for turn in offline)]
    return [
        {"engine": name}
        | {
            heading: _cell([t for t in offline if t.engine == name], workload, figure, unit, digits)
            for heading, workload, figure, unit, digits in _COLUMNS
        }
        for name in names
    ]


def _cell(
    turns: Sequence[Turn], workload: str | None, figure: str, unit: float, digits: int
) -> str:
    values = [
        turn.figures[figure]
        for turn in turns
        if workload in {None, turn.workload} and figure in turn.figures
    ]
    return f"{median(values) / unit:,.{digits}f}" if values else _NONE


def _online_rows(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return a row of each rate and engine."""
    online = [turn for turn in turns if turn.workload.startswith("w5 ")]
    seen = dict.fromkeys((turn.workload, turn.engine) for turn in online)
    keys = sorted(seen, key=lambda key: (float(key[0].split()[1].removesuffix("/s")), key[1]))
    milliseconds = (
        ("p50 ms a token", "normalised_p50_s"),
        ("p99 ms a token", "normalised_p99_s"),
        ("first token p50 ms", "ttft_p50_s"),
    )
    return [
        {"arrivals": workload.removeprefix("w5 "), "engine": engine}
        | {
            heading: _cell([t for t in online if t.engine == engine], workload, figure, 1e-3, 0)
            for heading, figure in milliseconds
        }
        for workload, engine in keys
    ]


def _ratio_rows(ratios: Sequence[Ratio]) -> list[dict[str, str]]:
    return [
        {
            "what": found.goal.name,
            "engine": found.goal.ours,
            "figure": _figure(found.ours),
            "best peer": found.peer,
            "its figure": _figure(found.best),
            "ratio": " ".join(_ratio(found)),
            "goal": _goal(found),
        }
        for found in ratios
    ]


def _ratio(found: Ratio) -> Iterator[str]:
    yield f"{found.ratio:.2f}"
    if len(found.ratios) > 1:
        yield f"({min(found.ratios):.2f} to {max(found.ratios):.2f})"


def _goal(found: Ratio) -> str:
    if found.goal.wanted is None:
        return _NONE
    words = "at least" if found.goal.is_pace else "at most"
    return f"{words} {found.goal.wanted:g}: {'reached' if found.is_reached else 'missed'}"


def _figure(value: float) -> str:
    """Return three digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
