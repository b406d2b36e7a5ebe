"""Plan table: a plan for inference as lines of text."""

from collections.abc import Iterator
from dataclasses import asdict

from alpage.cli.planned import Planned, PlannedPhase
from alpage.cli.table import aligned
from alpage.planners import Candidate, Remedies
from alpage.units import format_bytes, format_seconds

REMEDY_TEXTS = {
    "overlap": "transfers overlapped with products",
    "one_shot": "one-shot collectives",
    "int8_weights": "int8 weights",
    "int8_kv": "int8 keys and values",
    "other_layout": "the fastest of all layouts",
    "together": "all together",
}


def to_table(plan: Planned) -> str:
    """Return the plan's phases, and the switch between them."""
    blocks = [_phase(plan, one) for one in plan.phases]
    if plan.switch is not None:
        blocks.append("\n".join(switch_lines(plan)))
    return "\n\n\n".join(blocks)


def switch_lines(plan: Planned) -> Iterator[str]:
    """Yield what moves between the phases, and what everything takes."""
    prefill, decode = (one.choice.best.step_s for one in plan.phases)
    switch = plan.switch
    assert switch is not None
    moves = ", ".join(map(str, switch.collectives)) or "nothing moves"
    yield (
        f"switch: weights stay, keys and values go from {switch.before} to {switch.after}: "
        f"{moves}; a device sends {format_bytes(switch.wire_bytes)} in "
        f"{format_seconds(switch.time_s)}"
    )
    yield (
        f"in all: {format_seconds(prefill)} + {format_seconds(switch.time_s)} + "
        f"{plan.new_tokens:,} x {format_seconds(decode)} = {format_seconds(plan.total_s)}"
    )


def facts(one: PlannedPhase) -> list[tuple[str, str]]:
    """Return what was chosen, by name."""
    best, memory = one.choice.best, one.choice.best.memory
    device = best.mesh.cluster.device
    parts = {
        "weights": memory.weights_bytes,
        "keys and values": memory.kv_bytes,
        "gathered weights": memory.gathered_bytes,
        "activations": memory.residual_bytes,
    }
    kept = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    dtypes = f"weights {best.precision.weights}, products {best.precision.compute}"
    step = f"{format_seconds(best.step_s)}, MFU {best.mfu:.1%}"
    total, limit = format_bytes(memory.total_bytes), format_bytes(device.memory_bytes)
    return [
        ("layout", f"{best.layout.name} on {best.mesh}"),
        ("attention", "over heads" if best.attention_sharding == "heads" else "over the batch"),
        ("dtypes", f"{dtypes}, keys and values {best.precision.kv}"),
        ("step", f"{step}, {format_seconds(best.device_s_per_token)} of a device for each token"),
        ("memory", f"{total} of {limit} a device: {kept}"),
    ]


def name_of(candidate: Candidate) -> str:
    """Return a candidate's layout, its mesh and what its attention is over."""
    return f"{candidate.layout.name}, {candidate.attention_sharding}, {candidate.mesh}"


def bounds_text(found: Remedies) -> str:
    """Return the bounds as a sentence."""
    bounds = found.bounds
    return (
        f"{format_seconds(bounds.additive_s)} would remain without communication: arithmetic "
        f"{format_seconds(bounds.compute_s)} at the efficiency of large products, weights "
        f"{format_seconds(bounds.weights_s)}, keys and values {format_seconds(bounds.kv_s)}; "
        f"products and attention of this step as they are take {format_seconds(bounds.roofline_s)}"
    )


def _phase(plan: Planned, one: PlannedPhase) -> str:
    return "\n\n".join(
        [
            f"{plan.title}: {one.work}",
            aligned(facts(one)),
            aligned(list(_terms(one))),
            "\n".join(f"{sentence}." for sentence in one.why),
            aligned(list(_remedies(one))),
            f"{bounds_text(one.remedies)}.",
        ]
    )


def _terms(one: PlannedPhase) -> Iterator[tuple[str, ...]]:
    best, other = one.choice.best, one.choice.runner_up
    width = 14
    heads = [f"{name:>{width}}" for name in (best.layout.name, "SHARE")]
    if other is not None:
        heads += [f"{name:>{width}}" for name in (other.layout.name, "SHARE", "DIFFERENCE")]
    yield ("TERM", *heads)
    rivals = {} if other is None else asdict(other.terms) | {"step_s": other.step_s}
    for name, seconds in (asdict(best.terms) | {"step_s": best.step_s}).items():
        cells = [f"{1e3 * seconds:,.3f} ms", f"{seconds / best.step_s:.1%}"]
        if other is not None:
            rival = rivals[name]
            cells += [f"{1e3 * rival:,.3f} ms", f"{rival / other.step_s:.1%}"]
            cells.append(f"{round(1e3 * (rival - seconds), 3) + 0.0:+,.3f} ms")
        yield (name.removesuffix("_s"), *(f"{cell:>{width}}" for cell in cells))


def _remedies(one: PlannedPhase) -> Iterator[tuple[str, ...]]:
    step_s = one.choice.best.step_s
    yield ("WHAT WOULD SAVE TIME", f"{'SAVED':>14}", f"{'SHARE':>7}", f"{'STEP':>14}")
    for remedy in (*one.remedies.each, one.remedies.together):
        text = REMEDY_TEXTS[remedy.name]
        if remedy.name in ("other_layout", "together"):
            text += f": {name_of(remedy.candidate)}"
        yield (
            text,
            f"{1e3 * remedy.saved_s:>11,.3f} ms",
            f"{remedy.saved_s / step_s:>7.1%}",
            f"{1e3 * remedy.step_s:>11,.3f} ms",
        )
