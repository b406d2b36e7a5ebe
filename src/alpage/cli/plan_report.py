"""Plan report: a plan for inference as one HTML file that needs nothing beside it."""

from collections.abc import Sequence
from html import escape

from alpage.cli.page import to_page
from alpage.cli.plan_bars import cost_bars, memory_bar, total_bar, waterfall
from alpage.cli.plan_picture import layout_picture, moves_list, switch_figures
from alpage.cli.plan_plot import draw_pareto
from alpage.cli.planned import Planned, PlannedPhase
from alpage.cost import Precision
from alpage.hardware import Cluster
from alpage.planners import Candidate, Switch, slices, sweep
from alpage.units import format_bytes, format_seconds

# Of the plot: the paper's own goes as far.
_MAX_BATCH = 1024
_TITLES = {
    "ws_1d": "one-dimensional weight-stationary",
    "megatron": "Megatron",
    "ws_2d": "two-dimensional weight-stationary",
    "wg_x": "weight-gathered over x",
    "wg_xy": "weight-gathered over x and y",
    "wg_xyz": "weight-gathered over all",
    "fsdp": "fully sharded data parallel",
    "replicated": "the whole model on every device",
}


def to_html(result: Planned, precisions: Sequence[Precision]) -> str:
    """Return the report.

    Args:
        result: what was planned.
        precisions: dtypes to choose among for other batches and numbers of devices.
    """
    phases = "".join(_phase(result, one, precisions) for one in result.phases)
    both = _both(result, result.switch) if result.switch else ""
    footer = (
        "Times are computed by a model of the hardware, not measured. The layouts are "
        "those of Pope et al. 2022, “Efficiently Scaling Transformer Inference”."
    )
    return to_page(result.title, _head(result), phases + both, footer)


def _head(result: Planned) -> str:
    links = ""
    if result.switch is not None:
        names = [*(one.phase for one in result.phases), "switch"]
        links = "".join(f'<a href="#{name}">{name}</a>' for name in names)
        links = f'<nav aria-label="Parts">{links}</nav>'
    compute = result.phases[0].choice.best.precision.compute
    total = f"<p>{escape(_cluster(result.cluster, compute))}</p>"
    if result.switch is not None:
        total += (
            '<div class="total"><p>From a prompt to its last token: '
            f"<b>{format_seconds(result.total_s)}</b></p>{total_bar(result)}</div>"
        )
    return (
        f'<p class="eyebrow">alpage plan inference</p>'
        f"<h1>{escape(result.model)} <span>on {escape(result.cluster.name)}</span></h1>"
        f"{total}{links}"
    )


def _cluster(cluster: Cluster, compute: str) -> str:
    device, link = cluster.device, cluster.link
    text = (
        f"{cluster.num_devices} × {device.name}: "
        f"{device.flops_per_s_of(compute) / 1e12:,.4g} TFLOP/s in {compute}, "
        f"{format_bytes(device.memory_bytes)} at {device.memory_bytes_per_s / 1e9:,.4g} GB/s"
    )
    if cluster.num_devices == 1:
        return text
    text += f"; {link.name} ({link.topology}), {link.bytes_per_s / 1e9:,.4g} GB/s a device"
    if cluster.network is None:
        return text
    return f"{text}; {cluster.network.name}, {cluster.network.bytes_per_s / 1e9:,.4g} GB/s a host"


def _phase(result: Planned, one: PlannedPhase, precisions: Sequence[Precision]) -> str:
    best = one.choice.best
    why = "".join(f"<li>{escape(sentence)}.</li>" for sentence in one.why)
    return (
        f'<section id="{one.phase}" aria-labelledby="{one.phase}-title">'
        f'<h2 id="{one.phase}-title">{one.phase.capitalize()}</h2>'
        f'<p class="lead">{escape(one.work.capitalize())}</p>{_tiles(best)}{_choice(best)}'
        f'<div class="card"><h3>Why this one</h3><ul class="why">{why}</ul></div>'
        '<div class="card"><h3>How it lies on the devices</h3>'
        f"{layout_picture(best)}<h4>What moves in a block</h4>{moves_list(best)}</div>"
        f'<div class="card"><h3>Where the time goes</h3>{cost_bars(one)}</div>'
        f'<div class="card"><h3>What would save time</h3>{waterfall(one)}</div>'
        f'<div class="card"><h3>Memory of a device</h3>{memory_bar(best)}</div>'
        f"{_pareto(result, one, precisions)}</section>"
    )


def _tiles(best: Candidate) -> str:
    memory_bytes = best.memory.total_bytes
    limit_bytes = best.mesh.cluster.device.memory_bytes
    tokens_per_s = best.step.num_tokens / best.step_s
    tiles = (
        ("Step", format_seconds(best.step_s), f"{tokens_per_s:,.0f} tokens/s in all"),
        ("MFU", f"{best.mfu:.1%}", f"of the peak in {best.precision.compute}"),
        ("Device time", format_seconds(best.device_s_per_token), "of a device for each token"),
        (
            "Memory",
            format_bytes(memory_bytes),
            f"{memory_bytes / limit_bytes:.0%} of {format_bytes(limit_bytes)} a device",
        ),
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><span>{text}</span></dd></div>"
        for name, value, text in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _choice(best: Candidate) -> str:
    attention = "heads" if best.attention_sharding == "heads" else "the batch"
    precision = best.precision
    return (
        f'<p class="choice"><b>{best.layout.name}</b> {_TITLES[best.layout.name]}, '
        f"<b>{best.mesh}</b>, attention over <b>{attention}</b>, weights "
        f"<b>{precision.weights}</b>, products <b>{precision.compute}</b>, keys and values "
        f"<b>{precision.kv}</b></p>"
    )


def _pareto(result: Planned, one: PlannedPhase, precisions: Sequence[Precision]) -> str:
    best = one.choice.best
    found = sweep(
        best.shape,
        slices(result.cluster),
        best.step,
        max_batch=max(_MAX_BATCH, best.step.num_sequences),
        precisions=precisions,
    )
    drawings = "".join(draw_pareto(found, best, *size) for size in ((920, 460), (340, 400)))
    return (
        f'<div class="card"><h3>Latency against cost</h3>{drawings}<p class="note">Every dot is '
        "the fastest plan for a number of devices and a batch of a power of two: 64 × b32 is 64 "
        "devices and 32 sequences. A thin line joins the batches of one number of devices. On the "
        "thick line nothing else is both faster and cheaper. The diamond is this plan.</p></div>"
    )


def _both(result: Planned, switch: Switch) -> str:
    prefill, decode = (one.choice.best for one in result.phases)
    moves = (
        "".join(f"<li><code>{escape(str(one))}</code></li>" for one in switch.collectives)
        or "<li>Nothing: they lie as decode reads them.</li>"
    )
    sent = (
        f"A device sends {format_bytes(switch.wire_bytes)} for all blocks, in "
        f"{format_seconds(switch.time_s)}."
        if switch.wire_bytes
        else "Nothing is sent: every device has what it will read."
    )
    return (
        '<section id="switch" aria-labelledby="switch-title"><h2 id="switch-title">Switch</h2>'
        '<p class="lead">Both phases store weights alike, so only keys and values move</p>'
        f'<div class="card">{switch_figures(switch, prefill, decode)}'
        f"<h4>What moves them</h4><ul>{moves}</ul><p>{sent}</p></div></section>"
    )
