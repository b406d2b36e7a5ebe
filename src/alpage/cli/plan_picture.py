"""Plan picture: how a plan lays a model on the devices, and what they send one another."""

from collections.abc import Sequence
from html import escape

from alpage.cli.plan_drawing import Cut, draw_mesh, draw_tensor
from alpage.cli.plan_moves import Move, block_moves
from alpage.cost import padded_sizes
from alpage.hardware import Mesh
from alpage.layout import Dim, Sharding
from alpage.planners import Candidate, Switch
from alpage.units import format_bytes, format_seconds

_NAMES = {"T": "tokens", "E": "embed", "F": "ffw", "G": "kv heads"}


def layout_picture(one: Candidate) -> str:
    """Return the devices, and how weights, activations, keys and values are cut over them."""
    layout, mesh = one.layout, one.mesh
    sizes = padded_sizes(one.shape, one.attention, mesh, one.step)
    stored, used = layout.stored_weight(), layout.used_weight()
    hosts = mesh.cluster.num_hosts
    where = f"{hosts} hosts of {mesh.cluster.devices_per_host}" if hosts > 1 else "one host"
    if hosts == 1 and mesh.cluster.torus is not None:
        where = f"a torus of {' × '.join(map(str, mesh.cluster.torus))}"
    notation = str(stored) if _cut(stored, mesh) == _cut(used, mesh) else f"{stored} → {used}"
    figures = [
        _figure("Mesh", str(mesh), draw_mesh(mesh), f"{mesh.num_ranks} devices in {where}."),
        _figure(
            "Feed-forward weights",
            notation,
            draw_tensor("Feed-forward weights", *_sides(stored, sizes, mesh, used=used)),
            "The filled part is what the first device stores"
            + ("." if notation == str(stored) else ", the shaded one what it gathers for use."),
        ),
        _tensor("Between blocks", layout.residual_sharding(), sizes, mesh),
        _tensor("Into a block", layout.block_input(), sizes, mesh),
        _tensor("Hidden", layout.hidden(), sizes, mesh),
        kv_figure(one, "Keys and values"),
    ]
    return f'<div class="figures">{"".join(figures)}</div>'


def kv_figure(one: Candidate, title: str, lying: Sharding | None = None) -> str:
    """Return how keys and values lie, as a step reads them or otherwise."""
    sizes = padded_sizes(one.shape, one.attention, one.mesh, one.step)
    context = one.step.num_new_tokens + one.step.num_past_tokens
    sizes["T"] = sizes["T"] // one.step.num_new_tokens * context
    sharding = lying or one.attention.kv(one.shape.num_kv_heads, one.mesh)
    return _tensor(title, sharding, sizes, one.mesh)


def moves_list(one: Candidate) -> str:
    """Return what a block's devices send one another, in order."""
    moves = block_moves(one)
    if not moves:
        return "<p>Within a block nothing moves between devices.</p>"
    longest_s = max(move.wait_s + move.transfer_s for move in moves)
    turns = [None, *(move.turn for move in moves)]
    rows = "".join(
        _move(move, longest_s, is_same=move.turn is not None and move.turn == before)
        for move, before in zip(moves, turns, strict=False)
    )
    return (
        '<ol class="moves">'
        f"{rows}</ol><p class=note>A number is a turn: what has the same one travels together, and "
        "waits once; weights come while products compute. Bytes are what a device sends for one "
        f"of {one.shape.num_layers} blocks. "
        '<span class="key wait"></span> waiting for hops <span class="key transfer"></span> '
        "moving bytes</p>"
    )


def switch_figures(switch: Switch, prefill: Candidate, decode: Candidate) -> str:
    """Return keys and values as prefill leaves them and as decode reads them."""
    before = kv_figure(prefill, "Behind prefill", switch.before)
    after = kv_figure(decode, "For decode", switch.after)
    return f'<div class="figures two">{before}{after}</div>'


def _move(move: Move, longest_s: float, *, is_same: bool) -> str:
    names = "".join(
        f"<li><b>{escape(one.kind.replace('_', '-'))}</b> over {', '.join(one.axes)}</li>"
        for one in move.collectives
    )
    turn = "–" if move.turn is None else str(move.turn)
    kind = ' class="same"' if is_same else ""
    count = f"{move.change.num_tensors} × " if move.change.num_tensors > 1 else ""
    seconds = move.wait_s + move.transfer_s
    unit = 100 / longest_s if longest_s else 0
    bar = (
        f'<i class="wait" style="width:{move.wait_s * unit:.3g}%"></i>'
        f'<i class="transfer" style="width:{move.transfer_s * unit:.3g}%"></i>'
    )
    time = format_seconds(seconds) if move.wait_s else "rides along"
    if not move.sent_bytes:
        time = "nothing is sent"
    return (
        f'<li{kind}><span class="turn">{turn}</span>'
        f'<div class="what"><b>{escape(move.change.point)}</b>'
        f"<code>{count}{move.change.before} → {move.change.after}</code></div>"
        f'<ul class="how">{names}</ul><div class="size">{format_bytes(move.sent_bytes)}'
        f'<span class="soft"> {time}</span></div>'
        f'<div class="bar" aria-hidden="true">{bar}</div></li>'
    )


def _tensor(title: str, lying: Sharding, sizes: dict[str, int], mesh: Mesh) -> str:
    rows, columns = _sides(lying, sizes, mesh)
    part = f"{rows.part_size:,} × {columns.part_size:,}"
    return _figure(
        title, str(lying), draw_tensor(title, rows, columns), f"The first device has {part}."
    )


def _sides(
    lying: Sharding, sizes: dict[str, int], mesh: Mesh, used: Sharding | None = None
) -> tuple[Cut, Cut]:
    """Return a tensor's first two dims."""
    parts = [mesh.size(dim.axes) for dim in (used or lying).dims]
    rows, columns = (
        Cut(
            name=_NAMES[dim.letter],
            size=sizes[dim.letter],
            axes=_axes(dim, mesh),
            num_used=num_used,
        )
        for dim, num_used in zip(lying.dims[:2], parts, strict=False)
    )
    return rows, columns


def _axes(dim: Dim, mesh: Mesh) -> tuple[tuple[str, int], ...]:
    sizes = dict(mesh.axes)
    return tuple((axis, sizes[axis]) for axis in dim.axes if sizes[axis] > 1)


def _cut(lying: Sharding, mesh: Mesh) -> Sequence[tuple[tuple[str, int], ...]]:
    return [_axes(dim, mesh) for dim in lying.dims]


def _figure(title: str, notation: str, drawing: str, caption: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b><code>{escape(notation)}</code></figcaption>"
        f'{drawing}<p class="note">{escape(caption)}</p></figure>'
    )
