"""Serving: how an engine of one mesh cuts a model, for steps of any size.

An engine keeps keys and values where they are written, so all its steps attend alike; what may
change from step to step is the layout of the products, among those that store weights alike. A few
tokens move to weights that stay, many have the weights gathered for them (Pope et al. 2022,
arXiv:2211.05102, section 3.2).
"""

from dataclasses import dataclass
from typing import final

from alpage.cost import Precision, Step, forward_terms
from alpage.errors import InvalidValue
from alpage.hardware import Cluster, Mesh
from alpage.layout import LAYOUTS, Attention, Layout
from alpage.planners.layouts import Candidate, candidates
from alpage.workload import ModelShape

# What steps of an engine keep weights where they are; the others gather them for more tokens.
DECODE_LAYOUTS = ("ws_1d", "ws_2d", "megatron")
# What plans are compared on: decoding, which most steps are, and one prompt for as many of them as
# a request has tokens to generate.
_DECODE = Step(num_sequences=16, num_new_tokens=1, num_past_tokens=512)
_PROMPT_TOKENS = 512
_DECODE_STEPS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """A layout, and the fewest tokens that a step has in it."""

    layout: Layout
    min_tokens: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """How an engine runs.

    Attributes:
        mesh: its ranks.
        attention: where queries, keys and values lie, under the first of `steps`.
        steps: layouts for ever larger steps; the first one for the smallest.
        decode_s: seconds of a typical step that decodes.
        prefill_s: seconds of a typical prompt.
    """

    mesh: Mesh
    attention: Attention
    steps: tuple[StepLayout, ...]
    decode_s: float
    prefill_s: float

    @property
    def goal_s(self) -> float:
        """Seconds that a typical request takes of the engine."""
        return self.prefill_s + _DECODE_STEPS * self.decode_s

    def __str__(self) -> str:
        layouts = " and ".join(
            step.layout.name + (f" from {step.min_tokens} tokens on" if step.min_tokens else "")
            for step in self.steps
        )
        over = "the batch" if self.attention.batch else "heads"
        return f"{layouts}, mesh {self.mesh}, attention over {over}"


def plan_serving(
    shape: ModelShape,
    cluster: Cluster,
    *,
    layout: str = "auto",
    prefill_layout: str = "auto",
    attention: str = "auto",
    max_num_seqs: int,
    precision: Precision,
) -> ServingPlan:
    """Return the plan under which a typical request takes least.

    Args:
        shape: the model.
        cluster: its devices are all used.
        layout: of steps that decode: "auto", or one of `DECODE_LAYOUTS`.
        prefill_layout: of steps that have more tokens than could be decoding: "auto" for whatever
            is best for each number of tokens, or a layout's name.
        attention: "heads", "batch" or "auto".
        max_num_seqs: sequences that run at a time.
        precision: of the numbers.

    Raises:
        InvalidValue: no layout cuts the model as is asked.
    """
    names = DECODE_LAYOUTS if layout == "auto" else (layout,)
    priced = (
        candidate
        for candidate in candidates(shape, cluster, _DECODE, precision)
        if candidate.layout.name in names
        and attention in ("auto", "batch" if candidate.attention.batch else "heads")
    )
    plans = [_plan(candidate, prefill_layout, max_num_seqs) for candidate in priced]
    found = [plan for plan in plans if plan is not None]
    if not found:
        raise _refused(shape, cluster, layout, prefill_layout, attention)
    return min(found, key=lambda plan: plan.goal_s)


def _plan(decode: Candidate, prefill_layout: str, max_num_seqs: int) -> ServingPlan | None:
    """Return the plan that decodes so; None where its prompts cannot have the layout."""
    if prefill_layout == "auto":
        steps = _steps(decode)
    elif prefill_layout == decode.layout.name:
        steps = [StepLayout(layout=decode.layout, min_tokens=0)]
    else:
        other = LAYOUTS[prefill_layout]
        if not _is_stored_alike(other, decode.layout):
            return None
        steps = [
            StepLayout(layout=decode.layout, min_tokens=0),
            StepLayout(layout=other, min_tokens=max_num_seqs + 1),
        ]
    prefill_s = _prefill_s(decode, steps[-1].layout, _PROMPT_TOKENS)
    if prefill_s is None:
        return None
    return ServingPlan(
        mesh=decode.mesh,
        attention=decode.attention,
        steps=tuple(steps),
        decode_s=decode.step_s,
        prefill_s=prefill_s,
    )


def _steps(decode: Candidate) -> list[StepLayout]:
    """Return the fastest layout for one token, and every other from where it becomes the fastest.

    Sizes are powers of two. Who gathers less is tried first, and of equals is taken.
    """
    layouts = [decode.layout]
    layouts += [one for one in LAYOUTS.values() if _is_stored_alike(one, decode.layout)]
    steps = [StepLayout(layout=decode.layout, min_tokens=0)]
    for num_tokens in (1 << power for power in range(1, _PROMPT_TOKENS.bit_length())):
        times = {one: _prefill_s(decode, one, num_tokens) for one in dict.fromkeys(layouts)}
        known = {one: time_s for one, time_s in times.items() if time_s is not None}
        fastest = min(known, key=known.__getitem__, default=decode.layout)
        if fastest != steps[-1].layout:
            steps.append(StepLayout(layout=fastest, min_tokens=num_tokens))
    return steps


def _is_stored_alike(one: Layout, other: Layout) -> bool:
    return (one.stored_embed, one.stored_ffw) == (other.stored_embed, other.stored_ffw)


def _prefill_s(decode: Candidate, layout: Layout, num_tokens: int) -> float | None:
    """Return the seconds of a prompt under a layout, if it can have it: attention over heads."""
    if num_tokens < decode.mesh.size(layout.tokens):
        return None
    step = Step(num_sequences=1, num_new_tokens=num_tokens, num_past_tokens=0)
    attention = Attention(layout=layout)
    try:
        terms = forward_terms(decode.shape, attention, decode.mesh, step, decode.precision)
    except InvalidValue:
        return None
    return terms.step_s


def _refused(
    shape: ModelShape, cluster: Cluster, layout: str, prefill_layout: str, attention: str
) -> InvalidValue:
    asked = [layout] if layout != "auto" else list(DECODE_LAYOUTS)
    more = f", then {prefill_layout}" if prefill_layout != "auto" else ""
    over = f" with attention over {attention}" if attention != "auto" else ""
    return InvalidValue(
        field="ranks",
        value=cluster.num_devices,
        limit=f"do not cut this model evenly by {' or '.join(asked)}{more}{over}: it is "
        f"{shape.d_model} wide, its feed-forward {shape.d_ff}",
        remedy="Choose devices, replicas and stages that leave a number which divides both, or "
        "another layout",
    )
