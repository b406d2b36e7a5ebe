"""Layouts: how to cut one model over one cluster, so that a forward step takes least.

Every mesh of the cluster, every named layout and every way to attend is priced; what does not fit
into the memory is left out. Pope et al. 2022 (arXiv:2211.05102) choose so by hand, with the same
formulas.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Literal, final

from alpage.cost import DeviceMemory, Precision, Step, Terms, device_memory, forward_terms
from alpage.errors import AlpageError, InvalidValue, OutOfMemory
from alpage.hardware import Cluster, Mesh
from alpage.layout import LAYOUTS, Attention, Layout, attentions, dividing
from alpage.units import format_bytes
from alpage.workload import ModelShape

Objective = Literal["latency", "cost"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a step, and what it takes.

    Attributes:
        shape: the model.
        attention: how it attends, and the layout of its blocks.
        mesh: the devices.
        step: what is computed.
        precision: in which dtypes.
        terms: the seconds.
        memory: the bytes on each device.
    """

    shape: ModelShape
    attention: Attention
    mesh: Mesh
    step: Step
    precision: Precision
    terms: Terms
    memory: DeviceMemory

    @property
    def layout(self) -> Layout:
        """Of the blocks."""
        return self.attention.layout

    @property
    def attention_sharding(self) -> Literal["heads", "batch"]:
        """What is cut while attending: the sequences of the batch, or only heads."""
        return "batch" if self.mesh.size(self.attention.sequence_axes) > 1 else "heads"

    @property
    def name(self) -> tuple[str, str, str]:
        """Layout, what attention is cut over, and the dtype of weights: what tells plans apart."""
        return self.layout.name, self.attention_sharding, self.precision.weights

    @property
    def has_room(self) -> bool:
        """Whether it fits into the devices' memory."""
        return self.memory.total_bytes <= self.mesh.cluster.device.memory_bytes

    @property
    def step_s(self) -> float:
        """Seconds of the step."""
        return self.terms.step_s

    @property
    def device_s_per_token(self) -> float:
        """Seconds of one device for each token: the cost."""
        return self.step_s * self.mesh.num_ranks / self.step.num_tokens

    @property
    def mfu(self) -> float:
        """Share of the peak that useful operations make: two a weight and token, no attention."""
        num_active = (
            self.shape.num_parameters
            - self.shape.num_block_parameters
            + self.shape.num_active_block_parameters
        )
        device = self.mesh.cluster.device
        peak = device.flops_per_s_of(self.precision.compute) * self.mesh.num_ranks
        return 2 * num_active * self.step.num_tokens / (self.step_s * peak)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen among what.

    Attributes:
        best: the chosen one; of those within a hundredth of the least, the first in a fixed order.
        runner_up: the best with another layout or another sharding of attention, if there is one.
        candidates: all that fit, the best first.
        num_too_large: how many did not fit into the memory.
    """

    best: Candidate
    runner_up: Candidate | None
    candidates: tuple[Candidate, ...]
    num_too_large: int

    @property
    def alike(self) -> list[Candidate]:
        """The candidates for the step of the best in its dtypes, the fastest first."""
        best = self.best
        found = (
            one
            for one in self.candidates
            if (one.step, one.precision) == (best.step, best.precision)
        )
        return sorted(found, key=lambda one: one.step_s)


def choose_layout(
    shape: ModelShape,
    cluster: Cluster,
    step: Step,
    *,
    precisions: Sequence[Precision] = (Precision(),),
    objective: Objective = "latency",
) -> Choice:
    """Return the layout under which a step takes least.

    Args:
        shape: the model.
        cluster: its devices are all used.
        step: phase, batch and lengths.
        precisions: dtypes to choose among.
        objective: "latency": the least seconds for this batch; "cost": the least device-seconds a
            token for this batch or any smaller power of two.

    Raises:
        OutOfMemory: no layout fits into the devices' memory.
        InvalidValue: no layout can cut the model for this batch, or a device lacks a dtype.
    """
    steps = [step] if objective == "latency" else [step, *_smaller(step)]
    fitting: list[Candidate] = []
    smallest: Candidate | None = None
    num_too_large = 0
    for one_step, precision in product(steps, precisions):
        for candidate in candidates(shape, cluster, one_step, precision):
            if candidate.has_room:
                fitting.append(candidate)
                continue
            num_too_large += 1
            if smallest is None or candidate.memory.total_bytes < smallest.memory.total_bytes:
                smallest = candidate
    if not fitting:
        assert smallest is not None, "candidates raises where there is none"
        raise _nothing_fits(smallest)
    # The sort is stable: of equals the first layout of the table is taken.
    fitting.sort(key=lambda one: _goal(one, objective))
    alike = _ALIKE * _goal(fitting[0], objective)
    close = (one for one in fitting if _goal(one, objective) <= alike)
    best = min(close, key=lambda one: _ORDER.index(one.layout))
    others = (one for one in fitting if one.name != best.name)
    return Choice(
        best=best,
        runner_up=next(others, None),
        candidates=tuple(fitting),
        num_too_large=num_too_large,
    )


def candidates(
    shape: ModelShape,
    cluster: Cluster,
    step: Step,
    precision: Precision,
    *,
    has_mixed: bool = False,
) -> Iterator[Candidate]:
    """Yield every way to run a step on all devices of a cluster, whether or not it fits.

    Neighbouring axes that a layout only ever cuts by together are one axis of another mesh, so they
    come once. See `ways` for the last argument.
    """
    refusal: AlpageError | None = None
    is_empty = True
    for mesh in meshes(cluster):
        for attention in ways(mesh, step, has_mixed=has_mixed):
            if _is_again(attention, shape, mesh):
                continue
            try:
                candidate = priced(shape, attention, mesh, step, precision)
            except AlpageError as error:
                refusal = error
                continue
            is_empty = False
            yield candidate
    if is_empty and refusal is not None:
        raise refusal


def ways(mesh: Mesh, step: Step, *, has_mixed: bool = False) -> Iterator[Attention]:
    """Yield every layout with attention over heads, and over as many sequences as the batch fills.

    The more axes cut the batch, the less keys and values each device keeps and reads; but fewer
    axes wait for fewer hops, so that a mix may take less. The paper did not try that.

    Args:
        mesh: the devices.
        step: with the batch.
        has_mixed: whether attention comes over heads and fewer sequences, too, and over heads of
            tokens that are cut.
    """
    for layout in _ORDER:
        tokens, ffw = layout.tokens, layout.ffw
        if tokens and ffw and 1 in (mesh.size(tokens[:1]), mesh.size(ffw)):
            continue  # Gathering over one axis less, or over all, is the same.
        if has_mixed and tokens and mesh.size(tokens) <= step.num_tokens:
            yield Attention(layout=layout)
        if step.num_sequences < mesh.size(tokens):
            continue
        # Axes of one rank cut nothing more, so of as many shards there is one.
        filled = {
            num_shards: attention
            for attention in attentions(layout)
            if mesh.size(tokens)
            < (num_shards := mesh.size(attention.sequence_axes))
            <= step.num_sequences
        }
        own = Attention(layout=layout, batch=tokens)
        yield from (own, *list(filled.values())[0 if has_mixed else -1 :])


def priced(
    shape: ModelShape, attention: Attention, mesh: Mesh, step: Step, precision: Precision
) -> Candidate:
    """Return one way to run a step with what it takes, whether or not it fits.

    Raises:
        InvalidValue: see `forward_terms`.
    """
    return Candidate(
        shape=shape,
        attention=attention,
        mesh=mesh,
        step=step,
        precision=precision,
        terms=forward_terms(shape, attention, mesh, step, precision),
        memory=device_memory(shape, attention, mesh, step, precision),
    )


def meshes(cluster: Cluster) -> tuple[Mesh, ...]:
    """Return the meshes of axes x, y and z that all devices of a cluster can form.

    On a torus each axis takes whole directions of it; elsewhere any factors do. Over several hosts
    x may be the outermost axis or the innermost.
    """
    directions = _prime_factors(cluster.num_devices) if cluster.torus is None else cluster.torus
    sizes = {
        tuple(
            prod(size for size, axis in zip(directions, axes, strict=True) if axis == which)
            for which in range(3)
        )
        for axes in product(range(3), repeat=len(directions))
    }
    orders = ("xyz",) if cluster.num_hosts == 1 else ("xyz", "zyx")
    return tuple(
        cluster.mesh(**{axis: dict(zip("xyz", size, strict=True))[axis] for axis in order})
        for size in sorted(sizes)
        for order in orders
    )


# Prices closer than this are not told apart: the first layout in order is taken.
_ALIKE = 1.01
# Two-dimensional weight-stationary first: with x of one rank it is the one-dimensional layout, and
# it stores weights as the weight-gathered layouts do.
_ORDER = tuple(
    LAYOUTS[name]
    for name in ("ws_2d", "wg_x", "wg_xy", "wg_xyz", "ws_1d", "megatron", "fsdp", "replicated")
)


def _is_again(attention: Attention, shape: ModelShape, mesh: Mesh) -> bool:
    """Return whether two neighbouring axes cut the same tensors, as one axis of another mesh does.

    Only the ways between two shardings are more with two axes, which was never the least.
    """
    layout, num_kv_heads = attention.layout, shape.num_kv_heads
    cuts = [layout.stored_embed, layout.stored_ffw, layout.tokens, layout.ffw, layout.residual]
    cuts += [dividing(axes, num_kv_heads, mesh) for axes in (layout.stored_ffw, layout.ffw)]
    cuts += [dim.axes for dim in attention.kv(num_kv_heads, mesh).dims]
    return any(
        mesh.size(first) > 1 and all((first in cut) == (second in cut) for cut in cuts)
        for first, second in ("xy", "yz")
    )


def _goal(candidate: Candidate, objective: Objective) -> float:
    return candidate.step_s if objective == "latency" else candidate.device_s_per_token


def _smaller(step: Step) -> list[Step]:
    sizes = [1 << power for power in range(step.num_sequences.bit_length())]
    return [replace(step, num_sequences=size) for size in sizes if size < step.num_sequences]


def _prime_factors(number: int) -> tuple[int, ...]:
    """Return a number's prime factors, so that every way to share them out gives three sizes."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return tuple(factors)


def why_whole(candidate: Candidate) -> str:
    """Return which width keeps every device from having less than the whole model, or nothing."""
    if candidate.layout.name != "replicated":
        return ""
    try:
        LAYOUTS["megatron"].check_shape(candidate.shape, candidate.mesh)
    except InvalidValue as refusal:
        return f"{refusal.field} {refusal.value} {refusal.limit}"
    return ""


def _nothing_fits(smallest: Candidate) -> OutOfMemory:
    cluster, step, why = smallest.mesh.cluster, smallest.step, why_whole(smallest)
    sequences = f"{step.num_sequences} sequence{'s' if step.num_sequences > 1 else ''}"
    return OutOfMemory(
        field="cluster",
        value=cluster.name,
        limit=f"has {format_bytes(cluster.device.memory_bytes)} a device; the smallest layout for "
        f"{sequences} of {step.num_past_tokens + step.num_new_tokens} tokens "
        f"takes {format_bytes(int(smallest.memory.total_bytes))}"
        + (f": every device keeps the whole model, since {why}" if why else ""),
        remedy="Take another number of devices"
        if why
        else "Take more devices, int8 weights, a smaller batch or shorter sequences",
    )
