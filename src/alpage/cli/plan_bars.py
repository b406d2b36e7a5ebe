"""Plan bars: the seconds and bytes of a plan as bars with their numbers beside them."""

from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from itertools import accumulate

from alpage.cli.plan_table import REMEDY_TEXTS, name_of
from alpage.cli.planned import Planned, PlannedPhase
from alpage.planners import Candidate
from alpage.units import format_bytes, format_seconds

_TERM_TEXTS = {
    "products": "matrix products",
    "attention": "reading keys and values, scores",
    "transfer": "activations that move",
    "latency": "waiting for hops",
    "gather": "gathers that products do not hide",
}
# Shares of a bar from which a name, and from which a letter, has room in it, on a phone too.
_NAME_SHARE, _LETTER_SHARE = 0.22, 0.05
_UNITS = (("s", 1.0, 10.0), ("ms", 1e3, 1.0), ("us", 1e6, 0.0))
# Sums that differ by less of the step are the same.
_ROUNDING = 1e-6


def cost_bars(one: PlannedPhase) -> str:
    """Return the terms of the chosen plan and of its runner-up."""
    best, other = one.choice.best, one.choice.runner_up
    shown = [("chosen", best)] + ([("runner-up", other)] if other else [])
    longest_s = max(candidate.step_s for _, candidate in shown)
    bars = "".join(
        f'<div class="name"><b>{escape(name_of(candidate))}</b> <span class="soft">{rank}</span> '
        f"{format_seconds(candidate.step_s)}</div>"
        + _stack(_terms(candidate), candidate.step_s / longest_s)
        for rank, candidate in shown
    )
    return f'<div class="stacks">{bars}</div>{_term_table(best, other)}'


def memory_bar(best: Candidate) -> str:
    """Return what a device keeps, in its memory."""
    memory, limit = best.memory, best.mesh.cluster.device.memory_bytes
    parts = [
        ("weights", memory.weights_bytes),
        ("kv", memory.kv_bytes),
        ("gathered", memory.gathered_bytes),
        ("activations", memory.residual_bytes),
    ]
    names = {"kv": "keys and values", "gathered": "gathered weights"}
    free = limit - memory.total_bytes
    keys = "".join(
        f'<li><span class="key {name}">{name[0].upper()}</span>{names.get(name, name)} '
        f"<b>{format_bytes(size)}</b></li>"
        for name, size in parts
        if size
    )
    return (
        f"{_stack(parts, memory.total_bytes / limit, is_framed=True)}"
        f'<ul class="legend">{keys}<li><span class="key free"></span>free '
        f"<b>{format_bytes(free)}</b> of {format_bytes(limit)}</li></ul>"
    )


def waterfall(one: PlannedPhase) -> str:
    """Return what each remedy takes off the step, down to what none can."""
    step_s, found = one.choice.best.step_s, one.remedies
    bounds = found.bounds
    rows = [_row("this step", 0.0, step_s, step_s, "total")]
    left_s = step_s
    for remedy in found.each:
        text = REMEDY_TEXTS[remedy.name]
        if remedy.name == "other_layout" and remedy.saved_s > 0:
            text += f": {name_of(remedy.candidate)}"
        rows.append(_saved(text, left_s, remedy.saved_s, step_s))
        left_s -= remedy.saved_s
    more_s = left_s - found.together.step_s
    if abs(more_s) > _ROUNDING * step_s:
        text = "more" if more_s > 0 else "less"
        rows.append(_saved(f"{text} when they come together", left_s, more_s, step_s))
    together = f"all together: {name_of(found.together.candidate)}"
    rows.append(_row(together, 0.0, found.together.step_s, step_s, "total"))
    rows.append(_row("products and attention as they are", 0.0, bounds.roofline_s, step_s, "bound"))
    parts = (bounds.compute_s, bounds.weights_s, bounds.kv_s)
    texts = ("arithmetic alone", "then reading weights", "then reading keys and values")
    starts = accumulate(parts, initial=0.0)
    rows += [
        _row(text, start, part, step_s, "bound")
        for text, start, part in zip(texts, starts, parts, strict=False)
    ]
    return (
        f'<ol class="waterfall" style="--bound:{_percent(bounds.additive_s, step_s)}">'
        f"{''.join(rows)}</ol><p class=note>The dashed line is the bound: "
        f"{format_seconds(bounds.additive_s)} for arithmetic and reads one after the other, and "
        "nothing communicated. Where reads and arithmetic overlap, less is possible.</p>"
    )


def total_bar(plan: Planned) -> str:
    """Return the time from a prompt to its last token."""
    prefill, decode = (one.choice.best.step_s for one in plan.phases)
    switch_s = plan.switch.time_s if plan.switch else 0.0
    parts = [("prefill", prefill), ("switch", switch_s), ("decode", plan.new_tokens * decode)]
    texts = (
        format_seconds(prefill),
        format_seconds(switch_s) if switch_s else "no time",
        f"{plan.new_tokens:,} × {format_seconds(decode)}",
    )
    keys = "".join(
        f'<li><span class="key {name}">{name[0].upper()}</span>{name} <b>{text}</b></li>'
        for (name, _), text in zip(parts, texts, strict=True)
    )
    return f'{_stack(parts, 1.0)}<ul class="legend">{keys}</ul>'


def _terms(candidate: Candidate) -> list[tuple[str, float]]:
    terms = asdict(candidate.terms)
    return [(name.removesuffix("_s"), seconds) for name, seconds in terms.items()]


def _stack(parts: Iterable[tuple[str, float]], length: float, *, is_framed: bool = False) -> str:
    """Return parts behind one another, on a share of the whole width."""
    parts = [(name, size) for name, size in parts if size > 0]
    total = sum(size for _, size in parts)
    cells = []
    for name, size in parts:
        share = size / total
        text = name if share * length >= _NAME_SHARE else name[0].upper()
        text = text if share * length >= _LETTER_SHARE else ""
        cells.append(f'<i class="{name}" style="width:{100 * share:.4g}%">{text}</i>')
    frame = " framed" if is_framed else ""
    return (
        f'<div class="stack{frame}" aria-hidden="true"><div style="width:{100 * length:.4g}%">'
        f"{''.join(cells)}</div></div>"
    )


def _term_table(best: Candidate, other: Candidate | None) -> str:
    heads = ["term", "chosen", "share"] + (["runner-up", "difference"] if other else [])
    rivals = dict(_terms(other)) if other else {}
    rows = [(name, seconds, rivals.get(name)) for name, seconds in _terms(best)]
    rows.append(("step", best.step_s, other.step_s if other else None))
    unit, factor = _unit(best.step_s)
    lines = []
    for name, seconds, rival in rows:
        cells = [f"{factor * seconds:,.2f}", f"{seconds / best.step_s:.1%}"]
        if rival is not None:
            cells += [
                f"{factor * rival:,.2f}",
                f"{round(factor * (rival - seconds), 2) + 0.0:+,.2f}",
            ]
        key = "" if name == "step" else f'<span class="key {name}">{name[0].upper()}</span>'
        text = f"{key}{name}<small>{_TERM_TEXTS.get(name, 'all of them')}</small>"
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr class="{name}-row"><th scope="row">{text}</th>{numbers}</tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (
        f'<table class="terms"><caption>{unit} of a step</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _unit(step_s: float) -> tuple[str, float]:
    """Return a unit in which all parts of a step can be compared, and how many a second has."""
    return next((unit, factor) for unit, factor, least in _UNITS if step_s * factor >= least)


def _saved(text: str, from_s: float, saved_s: float, step_s: float) -> str:
    kind = "saved" if saved_s >= 0 else "added"
    unit, factor = _unit(step_s)
    sign = "−" if saved_s > 0 else "+"
    number = f"{sign}{factor * abs(saved_s):,.2f} {unit}" if saved_s else "nothing"
    return _row(text, from_s - max(0.0, saved_s), abs(saved_s), step_s, kind, number)


def _row(
    text: str, start_s: float, length_s: float, step_s: float, kind: str, number: str | None = None
) -> str:
    unit, factor = _unit(step_s)
    shown = number or f"{factor * length_s:,.2f} {unit}"
    # Remedies for the same seconds may together save more than there are.
    start_s = max(0.0, start_s)
    bar = (
        f'<i style="left:{_percent(start_s, step_s)};width:{_percent(length_s, step_s)}"></i>'
        if length_s
        else ""
    )
    return (
        f'<li class="{kind}"><span class="what">{escape(text)}</span><b>{shown}</b>'
        f'<span class="track" aria-hidden="true">{bar}</span></li>'
    )


def _percent(part: float, whole: float) -> str:
    return f"{min(100.0, 100 * part / whole):.4g}%"
