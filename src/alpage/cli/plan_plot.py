"""Plan plot: latency against cost of every batch and number of devices, and which are worth it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor, log10
from typing import final

from alpage.cli.plan_drawing import label, line, svg
from alpage.planners import Candidate, frontier
from alpage.units import format_seconds

_LEFT, _RIGHT_GAP, _TOP, _BOTTOM_GAP = 58, 16, 26, 40
_LETTER, _ROW = 6.6, 13.0


@final
@dataclass(frozen=True, slots=True)
class _Scale:
    """From seconds to a place on an axis."""

    least: float
    most: float
    start: float
    end: float

    def __call__(self, seconds: float) -> float:
        share = (log10(seconds) - self.least) / (self.most - self.least)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[tuple[float, bool]]:
        """Yield round numbers, and which of them are to be named."""
        decades = self.most - self.least
        for power in range(floor(self.least), ceil(self.most) + 1):
            for digit in (1, 1.5, 2, 3, 4, 5, 7) if decades < 1 else (1, 2, 5):
                if self.least <= log10(digit * 10.0**power) <= self.most:
                    yield digit * 10.0**power, digit == 1 or decades < 2


def draw_pareto(found: Sequence[Candidate], chosen: Candidate, width: int, height: int) -> str:
    """Return the plot.

    Args:
        found: candidates of any batch and number of devices.
        chosen: the one to be marked.
        width: of the drawing.
        height: of the drawing.
    """
    kept = frontier(found)
    everything = [*found, chosen]
    across = _scale([one.step_s for one in everything], _LEFT, width - _RIGHT_GAP)
    up = _scale([one.device_s_per_token for one in everything], height - _BOTTOM_GAP, _TOP)

    def place(one: Candidate) -> tuple[float, float]:
        return across(one.step_s), up(one.device_s_per_token)

    parts = list(_axes(across, up, width, height))
    by_size = sorted(found, key=lambda one: (one.mesh.num_ranks, one.step.num_sequences))
    for _, group in groupby(by_size, key=lambda one: one.mesh.num_ranks):
        places = [place(one) for one in group]
        parts += [_path(places, "family"), *(_dot(x, y, 2.2, "other") for x, y in places)]
    parts.append(_path([place(one) for one in kept], "frontier"))
    parts += [_dot(*place(one), 4, "kept") for one in kept]
    x, y = place(chosen)
    parts.append(f'<path class="chosen" d="M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9-9z"/>')
    starts = {one.mesh.num_ranks: one for one in reversed(by_size)}
    parts += _labels(chosen, [*kept, *starts.values()], place, width, height)
    best = "; ".join(
        f"{_name(one)}: {format_seconds(one.step_s)}, {format_seconds(one.device_s_per_token)}"
        for one in kept
    )
    text = (
        f"Seconds of a step across, device-seconds a token up, both logarithmic. Chosen, marked by "
        f"a diamond: {_name(chosen)}. None is both faster and cheaper than these, as devices x "
        f"batch: {best}."
    )
    kind = "wide" if width > 480 else "narrow"
    return svg(width, height, "Latency against cost", text, *parts, kind=f"plot {kind}")


def _name(one: Candidate) -> str:
    return f"{one.mesh.num_ranks} × b{one.step.num_sequences}"


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    least, most = log10(min(values)), log10(max(values))
    margin = max(0.1, 0.06 * (most - least))
    return _Scale(least - margin, most + margin, start, end)


def _axes(across: _Scale, up: _Scale, width: int, height: int) -> Iterator[str]:
    bottom, right = height - _BOTTOM_GAP, width - _RIGHT_GAP
    last_x = -1e9
    for seconds, is_named in across.ticks():
        x = across(seconds)
        yield line(x, _TOP, x, bottom, "grid")
        if is_named and x - last_x > 8 * _LETTER and _LEFT <= x <= right - 8:
            yield label(x, bottom + 15, _short(seconds))
            last_x = x
    last_y = 1e9
    for seconds, is_named in up.ticks():
        y = up(seconds)
        yield line(_LEFT, y, right, y, "grid")
        if is_named and last_y - y > 1.5 * _ROW:
            yield label(_LEFT - 6, y + 4, _short(seconds), anchor="end")
            last_y = y
    yield label((_LEFT + right) / 2, height - 6, "latency: a step →", "strong")
    yield label(4, 13, "↑ cost: device time a token", "strong", "start")


def _short(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 0.999:
            return f"{seconds * factor:,.4g} {unit}"
    return f"{seconds * 1e9:,.4g} ns"


def _labels(
    chosen: Candidate,
    others: Sequence[Candidate],
    place: Callable[[Candidate], tuple[float, float]],
    width: int,
    height: int,
) -> Iterator[str]:
    """Yield names of points that have room for one, the chosen one's first."""
    points = [place(one) for one in (*others, chosen)]
    taken: list[tuple[float, float, float, float]] = []
    named: set[str] = set()
    for one in (chosen, *others):
        text = f"this plan: {_name(one)}" if one is chosen else _name(one)
        if _name(one) in named:
            continue
        x, y = place(one)
        long = len(text) * _LETTER
        for left, base in (
            (x + 12, y - 7),
            (x + 12, y + 4),
            (x - 12 - long, y + 16),
            (x + 10, y + 18),
            (x - 12 - long, y - 6),
            (x - 12 - long, y + 4),
        ):
            box = left - 2, base - _ROW + 2, left + long + 2, base + 4
            is_inside = box[0] > _LEFT and box[2] < width and box[1] > _TOP
            is_inside = is_inside and box[3] < height - _BOTTOM_GAP
            hits = any(box[0] < px < box[2] and box[1] < py < box[3] for px, py in points)
            if is_inside and not hits and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                named.add(_name(one))
                yield label(left, base, text, "strong" if one is chosen else "point", "start")
                break


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _path(places: Sequence[tuple[float, float]], kind: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{points}"/>'


def _dot(x: float, y: float, radius: float, kind: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
