"""Plan drawing: the shapes that drawings of a plan are made of, as SVG.

Sizes are of a drawing as wide as a phone, so that its letters stay readable there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import permutations, product
from math import prod
from typing import final

from alpage.hardware import Mesh

WIDTH, HEIGHT = 320, 190
_LEFT, _TOP, _RIGHT, _BOTTOM = 82, 44, 312, 182
# Lines that are closer than this are not drawn.
_LEAST_GAP = 3.0
_MAX_DRAWN = 64


def svg(width: int, height: int, title: str, text: str, *parts: str, kind: str = "") -> str:
    """Return a drawing that says in words what it shows."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title>"
        f"<desc>{escape(text)}</desc>{''.join(parts)}</svg>"
    )


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle."""
    return (
        f'<rect class="{kind}" x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{height:.4g}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a line."""
    return f'<line class="{kind}" x1="{x1:.4g}" y1="{y1:.4g}" x2="{x2:.4g}" y2="{y2:.4g}"/>'


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    """Return a text at a point."""
    return (
        f'<text class="{kind}" x="{x:.4g}" y="{y:.4g}" text-anchor="{anchor}">{escape(text)}</text>'
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One side of a tensor and how it is cut.

    Attributes:
        name: what it counts.
        size: of all of it.
        axes: mesh axes that cut it, with their sizes, the major one first; none of one rank.
        num_used: parts of it as it is used, where gathered parts make fewer.
    """

    name: str
    size: int
    axes: tuple[tuple[str, int], ...] = ()
    num_used: int | None = None

    @property
    def num_parts(self) -> int:
        """Parts that all axes together make."""
        return prod(size for _, size in self.axes)

    @property
    def over(self) -> str:
        """What cuts it, such as "x 4, z 16"."""
        return ", ".join(f"{name} {size}" for name, size in self.axes)

    @property
    def part_size(self) -> int:
        """Of the largest part."""
        return -(-self.size // self.num_parts)

    def __str__(self) -> str:
        if not self.axes:
            return f"{self.name} {self.size:,} is whole"
        parts = f"{self.num_parts} parts of {self.part_size:,}"
        return f"{self.name} {self.size:,} is cut over {self.over} into {parts}"


def draw_tensor(title: str, rows: Cut, columns: Cut) -> str:
    """Return a tensor cut by its rows and columns, with the first device's part filled.

    What that device has in use while others' parts are gathered is shaded.
    """
    width, height = _RIGHT - _LEFT, _BOTTOM - _TOP
    parts = [rect(_LEFT, _TOP, width, height, "tensor")]
    used = (rows.num_used or rows.num_parts, columns.num_used or columns.num_parts)
    is_gathered = used != (rows.num_parts, columns.num_parts)
    if is_gathered:
        parts.append(rect(_LEFT, _TOP, width / used[1], height / used[0], "used"))
    mine = max(3.0, width / columns.num_parts), max(3.0, height / rows.num_parts)
    is_large = mine[0] * mine[1] > width * height / 3
    parts.append(rect(_LEFT, _TOP, *mine, "mine large" if is_large else "mine"))
    for offset, kind in _cut_lines(columns, width):
        parts.append(line(_LEFT + offset, _TOP, _LEFT + offset, _BOTTOM, kind))
    for offset, kind in _cut_lines(rows, height):
        parts.append(line(_LEFT, _TOP + offset, _RIGHT, _TOP + offset, kind))
    parts.append(rect(_LEFT, _TOP, width, height, "outline"))
    middle = (_LEFT + _RIGHT) / 2
    parts.append(label(middle, 16, f"{columns.name} {columns.size:,}", "strong"))
    cut = f"over {columns.over} → {columns.part_size:,} each" if columns.axes else "whole"
    parts.append(label(middle, 34, cut, "soft"))
    side = [rows.name, f"{rows.size:,}"]
    words = ["over", *["and"] * len(rows.axes)]
    side += [f"{word} {name} {size}" for word, (name, size) in zip(words, rows.axes, strict=False)]
    side.append(f"→ {rows.part_size:,}" if rows.axes else "whole")
    first = (_TOP + _BOTTOM) / 2 - 8 * len(side) + 12
    for number, text in enumerate(side):
        kind = "strong" if number < 2 else "soft"
        parts.append(label(_LEFT - 8, first + 16 * number, text, kind, "end"))
    text = f"{rows}; {columns}. The filled part is the first device's."
    if is_gathered:
        text += " The shaded part is what it has in use once others' parts are gathered."
    return svg(WIDTH, HEIGHT, title, text, *parts)


def _cut_lines(cut: Cut, length: float) -> Iterator[tuple[float, str]]:
    """Yield where lines go: between the parts of the major axis, and between all of them."""
    major = cut.axes[0][1] if cut.axes else 1
    is_dense = length / cut.num_parts < _LEAST_GAP
    for number in range(1, major if is_dense else cut.num_parts):
        count = major if is_dense else cut.num_parts
        if length / count >= _LEAST_GAP:
            is_major = len(cut.axes) > 1 and number % (count // major) == 0
            yield number * length / count, "cut major" if is_major else "cut"


@final
@dataclass(frozen=True, slots=True)
class _Grid:
    """Where devices are drawn: columns, rows, and blocks of both beside or below one another."""

    column: str
    row: str
    block: str
    is_across: bool
    cell: float
    sizes: dict[str, int]

    def place(self, at: dict[str, int]) -> tuple[float, float]:
        """Return a device's upper left corner."""
        gap = self.cell * 0.6
        block = at[self.block]
        x = _LEFT + self.cell * at[self.column]
        y = _TOP + self.cell * at[self.row]
        if self.is_across:
            return x + block * (self.cell * self.sizes[self.column] + gap), y
        return x, y + block * (self.cell * self.sizes[self.row] + gap)


def draw_mesh(mesh: Mesh) -> str:
    """Return the devices of a mesh of the axes x, y and z, the first of them filled."""
    grid = _grid(mesh)
    per_host = mesh.cluster.devices_per_host
    parts = []
    size = grid.cell * 0.84
    for rank in range(mesh.num_ranks):
        at = mesh.coordinates(rank)
        if max(at.values()) >= _MAX_DRAWN:
            continue
        host = rank // per_host
        kind = "device mine" if rank == 0 else f"device host{host % 2}"
        parts.append(rect(*grid.place(at), size, size, kind))
    last = {axis: grid.sizes[axis] - 1 for axis in "xyz"}
    right = grid.place(last)[0] + grid.cell
    bottom = grid.place(last)[1] + grid.cell
    first = grid.place(dict.fromkeys("xyz", 0) | {grid.column: last[grid.column]})
    sizes = dict(mesh.axes)
    parts.append(label((_LEFT + first[0] + size) / 2, 34, _axis(grid.column, sizes), "strong"))
    if sizes[grid.row] > 1:
        down = _TOP + grid.cell * grid.sizes[grid.row] / 2 + 4
        parts.append(label(_LEFT - 8, down, _axis(grid.row, sizes), "strong", "end"))
    if sizes[grid.block] > 1 and grid.is_across:
        parts.append(label((_LEFT + right) / 2, bottom + 16, _axis(grid.block, sizes), "strong"))
    elif sizes[grid.block] > 1:
        is_free = sizes[grid.row] == 1
        x, y = (_LEFT - 8, (_TOP + bottom) / 2 + 4) if is_free else (_LEFT - 8, bottom + 4)
        parts.append(label(x, y, f"{_axis(grid.block, sizes)} ↓", "strong", "end"))
    text = f"{mesh.num_ranks} devices, {mesh}, on {mesh.cluster.num_hosts} hosts of {per_host}. "
    if max(sizes.values()) > _MAX_DRAWN:
        text += f"The first {_MAX_DRAWN} of an axis are drawn. "
    return svg(WIDTH, HEIGHT, "Mesh", f"{text}The filled one is the first device.", *parts)


def _axis(name: str, sizes: dict[str, int]) -> str:
    return f"{name} {sizes[name]}"


def _grid(mesh: Mesh) -> _Grid:
    """Return the grid with the largest cells."""
    sizes = {axis: min(mesh.size((axis,)), _MAX_DRAWN) for axis in "xyz"}
    found = []
    for (column, row, block), is_across in product(permutations("zyx"), (False, True)):
        across, down = float(sizes[column]), float(sizes[row])
        if is_across:
            across = sizes[block] * (across + 0.6) - 0.6
        else:
            down = sizes[block] * (down + 0.6) - 0.6
        # Below blocks that lie side by side is their label.
        height = _BOTTOM - _TOP - (16 if is_across else 0)
        cell = min(22.0, (_RIGHT - _LEFT) / across, height / down)
        found.append(_Grid(column, row, block, is_across, cell, sizes))
    return max(found, key=lambda grid: grid.cell)
