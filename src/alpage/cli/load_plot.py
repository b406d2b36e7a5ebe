"""Load plot: curves and dots over axes from nought, as SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import final

from alpage.cli.plan_drawing import label, line, svg

_LEFT, _RIGHT_GAP, _TOP, _BOTTOM_GAP = 58, 18, 26, 40
_WIDE, _NARROW = (920, 300), (340, 280)
_LETTER = 6.6
_MOST_TICKS = 6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points, and what they are.

    Attributes:
        name: what is written beside them.
        points: across and up; in order, if they are joined.
        is_joined: whether a line goes through them.
        has_dots: whether they are marked.
    """

    name: str
    points: Sequence[tuple[float, float]]
    is_joined: bool = True
    has_dots: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over the same axes.

    Attributes:
        title: what is shown.
        across: name of the axis.
        up: likewise.
        curves: at most four; those without a point are left out.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Curve]


def draw(plot: Plot) -> str:
    """Return a plot for wide pages and one for phones, with a legend that says which is which."""
    curves = [curve for curve in plot.curves if curve.points]
    if not curves:
        return '<p class="note">Nothing to show.</p>'
    drawings = "".join(
        _draw(plot, curves, *size, kind)
        for size, kind in ((_WIDE, "plot wide"), (_NARROW, "plot narrow"))
    )
    keys = "".join(
        f'<li><span class="key curve{number}"></span>{curve.name}</li>'
        for number, curve in enumerate(curves)
    )
    return f'{drawings}<ul class="legend">{keys}</ul>'


def _draw(plot: Plot, curves: Sequence[Curve], width: int, height: int, kind: str) -> str:
    most_x = max(x for curve in curves for x, _ in curve.points) or 1.0
    most_y = 1.05 * max(y for curve in curves for _, y in curve.points) or 1.0
    right, bottom = width - _RIGHT_GAP, height - _BOTTOM_GAP
    across = (right - _LEFT) / most_x
    up = (bottom - _TOP) / most_y
    parts = []
    for value, text in _ticks(most_x):
        x = _LEFT + across * value
        parts.append(line(x, _TOP, x, bottom, "grid"))
        if x + len(text) * _LETTER / 2 <= width:
            parts.append(label(x, bottom + 15, text))
    for value, text in _ticks(most_y):
        y = bottom - up * value
        parts += [line(_LEFT, y, right, y, "grid"), label(_LEFT - 6, y + 4, text, anchor="end")]
    parts.append(label((_LEFT + right) / 2, height - 6, f"{plot.across} →", "strong"))
    parts.append(label(4, 13, f"↑ {plot.up}", "strong", "start"))
    for number, curve in enumerate(curves):
        places = [(_LEFT + across * x, bottom - up * y) for x, y in curve.points]
        if curve.is_joined:
            text = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="curve curve{number}" points="{text}"/>')
        if curve.has_dots or not curve.is_joined:
            parts += [
                f'<circle class="curve{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
                for x, y in places
            ]
    text = f"{plot.across} across, {plot.up} up: {', '.join(curve.name for curve in curves)}."
    return svg(width, height, plot.title, text, *parts, kind=kind)


def _ticks(most: float) -> Iterator[tuple[float, str]]:
    """Yield round numbers from nought to the most."""
    rough = most / _MOST_TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    number = 0
    while number * step <= most:
        yield number * step, f"{number * step:,.6g}"
        number += 1
