"""Inference: how one model runs on one cluster while it prefills, while it decodes, or in turns.

In turns both phases share a mesh and store weights alike, so that only keys and values move between
them (Pope et al. 2022, arXiv:2211.05102, section 3.2).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from typing import Literal, final, get_args

from alpage.cost import Precision, Step
from alpage.errors import InvalidValue, OutOfMemory
from alpage.hardware import Cluster, Mesh
from alpage.layout import Layout
from alpage.planners.layouts import Candidate, Choice, Objective, choose_layout, priced, ways
from alpage.planners.switch import Switch, switch_between
from alpage.units import format_bytes
from alpage.workload import ModelShape

Phase = Literal["prefill", "decode"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePlan:
    """How a model runs.

    Attributes:
        prefill: of the prompts; None where only decode was planned.
        decode: of a token behind them; None where only prefill was planned.
        switch: between the two; None where only one was planned.
    """

    prefill: Choice | None = None
    decode: Choice | None = None
    switch: Switch | None = None


def plan_inference(  # noqa: PLR0913 - what a user decides
    shape: ModelShape,
    cluster: Cluster,
    *,
    phase: Phase | None = None,
    batch: int,
    prefill_batch: int = 1,
    context: int,
    new_tokens: int = 64,
    precisions: Sequence[Precision] = (Precision(),),
    objective: Objective = "latency",
) -> InferencePlan:
    """Return the best plan for one phase, or for both on one mesh.

    Both are chosen together: for latency, the least seconds of one prefill, the switch and
    `new_tokens` steps of decode; for cost, the least device-seconds a sequence. Of plans within a
    hundredth of it, one is taken in which most phases have the layout they would have alone.

    Args:
        shape: the model.
        cluster: its devices are all used.
        phase: None for both.
        batch: sequences that decode together.
        prefill_batch: sequences that prefill together.
        context: tokens of each prompt: what prefill computes and decode finds.
        new_tokens: tokens generated for each prompt.
        precisions: dtypes to choose among.
        objective: see `choose_layout`.

    Raises:
        InvalidValue: an argument is out of its range, or no layout can cut the model.
        OutOfMemory: nothing fits into the devices' memory.
    """
    _check(phase, objective)
    least_context = 0 if phase == "decode" else 1
    for name, value, least in (
        ("batch", batch, 1),
        ("prefill_batch", prefill_batch, 1),
        ("context", context, least_context),
        ("new_tokens", new_tokens, 1),
    ):
        _check_count(name, value, least)
    prefill_step = Step(num_sequences=prefill_batch, num_new_tokens=context, num_past_tokens=0)
    decode_step = Step(num_sequences=batch, num_new_tokens=1, num_past_tokens=context)

    def chosen(step: Step) -> Choice:
        return choose_layout(shape, cluster, step, precisions=precisions, objective=objective)

    match phase:
        case "prefill":
            return InferencePlan(prefill=chosen(prefill_step))
        case "decode":
            return InferencePlan(decode=chosen(decode_step))
        case None:
            return _joined(chosen(prefill_step), chosen(decode_step), new_tokens, objective)


# Plans closer than this are not told apart.
_ALIKE = 1.01
_MAX_COUNT = 2**31 - 1


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    goal: float
    prefill: Candidate
    decode: Candidate
    switch: Switch


def _joined(
    prefill: Choice, decode: Choice, new_tokens: int, objective: Objective
) -> InferencePlan:
    """Return the best pair of both phases' candidates that share a mesh, weights and dtypes."""
    groups: dict[object, tuple[list[Candidate], list[Candidate]]] = defaultdict(lambda: ([], []))
    for number, choice, other in ((0, prefill, decode), (1, decode, prefill)):
        for one in (*choice.candidates, *_finer(choice.candidates, other.candidates)):
            groups[_stored(one.mesh, one.layout, one.precision)][number].append(one)
    pairs: list[_Pair] = []
    least = inf
    # Candidates come the best first, so an early pair spares most of the others.
    for group in groups.values():
        for first, then in product(*group):
            share = _share(first, objective)
            goal = share * first.step_s + new_tokens * _share(then, objective) * then.step_s
            if goal > _ALIKE * least or not _fit(first, then, new_tokens):
                continue
            switch = switch_between(first, then)
            pairs.append(_Pair(goal + share * switch.time_s, first, then, switch))
            least = min(least, pairs[-1].goal)
    if not pairs:
        raise _nothing_fits(prefill.best)
    alone = (prefill.best.layout, decode.best.layout)
    best = min(
        (pair for pair in pairs if pair.goal <= _ALIKE * least),
        key=lambda pair: (
            (pair.prefill.layout != alone[0]) + (pair.decode.layout != alone[1]),
            pair.goal,
        ),
    )
    return InferencePlan(
        prefill=_with_best(prefill, best.prefill, objective),
        decode=_with_best(decode, best.decode, objective),
        switch=best.switch,
    )


def _finer(known: Sequence[Candidate], others: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield what else fits on the meshes of the other phase and stores weights as it does.

    What never cuts by y without z is a candidate with one axis for both only, and the other phase
    may need two.
    """
    meshes = dict.fromkeys(
        one.mesh for one in others if one.mesh.size("y") > 1 and one.mesh.size("z") > 1
    )
    wanted = {_stored(one.mesh, one.layout, one.precision) for one in others}
    present = {(one.attention, one.mesh, one.step, one.precision) for one in known}
    steps = dict.fromkeys((one.step, one.precision) for one in known)
    for mesh, (step, precision) in product(meshes, steps):
        for attention in ways(mesh, step):
            is_present = (attention, mesh, step, precision) in present
            if is_present or _stored(mesh, attention.layout, precision) not in wanted:
                continue
            try:
                one = priced(known[0].shape, attention, mesh, step, precision)
            except InvalidValue:
                continue  # The mesh cannot cut the model so.
            if one.has_room:
                yield one


def _stored(mesh: Mesh, layout: Layout, precision: Precision) -> object:
    """Return what two candidates must share so that no weight moves from one to the other."""
    cuts = tuple(
        tuple(axis for axis in axes if mesh.size((axis,)) > 1)
        for axes in (layout.stored_embed, layout.stored_ffw)
    )
    return mesh.axes, cuts, precision


def _share(candidate: Candidate, objective: Objective) -> float:
    """Return what a second of a step counts: itself, or the devices for each sequence."""
    if objective == "latency":
        return 1.0
    return candidate.mesh.num_ranks / candidate.step.num_sequences


def _fit(prefill: Candidate, decode: Candidate, new_tokens: int) -> bool:
    """Return whether the last prompts can be prefilled, and the last tokens decoded.

    While prompts are prefilled, the other sequences of the batch are there already.
    """
    step, kv_bytes = decode.step, decode.memory.kv_bytes
    others = max(0.0, 1 - prefill.step.num_sequences / step.num_sequences)
    grown = (new_tokens - 1) / (step.num_past_tokens + 1)
    most_bytes = max(
        prefill.memory.total_bytes + others * kv_bytes,
        decode.memory.total_bytes + grown * kv_bytes,
    )
    return most_bytes <= decode.mesh.cluster.device.memory_bytes


def _with_best(choice: Choice, best: Candidate, objective: Objective) -> Choice:
    """Return a choice with another best, and the best that differs from that as runner-up."""
    found = list(choice.candidates)
    if best not in found:
        found.append(best)
        found.sort(key=lambda one: _share(one, objective) * one.step_s)
    others = (one for one in found if one.name != best.name)
    return replace(choice, best=best, runner_up=next(others, None), candidates=tuple(found))


def _check(phase: str | None, objective: str) -> None:
    for field, value, known in (
        ("phase", phase, (None, *get_args(Phase))),
        ("objective", objective, get_args(Objective)),
    ):
        if value not in known:
            names = " or ".join(name for name in known if name)
            raise InvalidValue(
                field=field,
                value=value,
                limit=f"must be {names}",
                remedy="Give one of these" + (", or none for both" if None in known else ""),
            )


def _check_count(name: str, value: int, least: int) -> None:
    if not least <= value <= _MAX_COUNT:
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be a whole number from {least} to {_MAX_COUNT}",
            remedy="Correct the number",
        )


def _nothing_fits(one: Candidate) -> OutOfMemory:
    cluster = one.mesh.cluster
    return OutOfMemory(
        field="cluster",
        value=cluster.name,
        limit=f"has {format_bytes(cluster.device.memory_bytes)} a device; each phase fits alone, "
        "but not prefill beside the keys and values of the other sequences, or not the last token",
        remedy="Take more devices, int8 weights, a smaller batch or shorter sequences",
    )
