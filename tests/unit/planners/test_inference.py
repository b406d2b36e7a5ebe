"""Plans for both phases against all pairs, and what is said where there is none."""

from dataclasses import replace
from itertools import product

import pytest
from test_layouts import every_mesh, every_way

from alpage.cost import Precision, Step
from alpage.errors import InvalidValue, OutOfMemory
from alpage.hardware import resolve_cluster
from alpage.planners import choose_layout, plan_inference
from alpage.planners.layouts import priced
from alpage.planners.switch import switch_between
from alpage.shapes import named_shape

INT8 = Precision(weights="int8")
LIMITS = dict(batch=8, context=512)


def steps_of(batch, prefill_batch, context):
    return (
        Step(num_sequences=prefill_batch, num_new_tokens=context, num_past_tokens=0),
        Step(num_sequences=batch, num_new_tokens=1, num_past_tokens=context),
    )


def every_candidate(shape, mesh, step, precision):
    for attention in every_way(mesh, step):
        try:
            yield priced(shape, attention, mesh, step, precision)
        except InvalidValue:
            continue


def stored(candidate):
    """The axes that cut the stored weights, but for those of one rank, which cut nothing."""
    layout, mesh = candidate.layout, candidate.mesh
    return [
        [axis for axis in axes if mesh.size(axis) > 1]
        for axes in (layout.stored_embed, layout.stored_ffw)
    ]


def have_room(first, then, new_tokens):
    """The last prompts beside what was prefilled before, and the last new token."""
    memory_bytes = first.mesh.cluster.device.memory_bytes
    batch, prompts = then.step.num_sequences, first.step.num_sequences
    length = then.step.num_past_tokens + 1
    waiting_bytes = then.memory.kv_bytes / batch * max(0, batch - prompts)
    last_bytes = then.memory.kv_bytes * (length + new_tokens - 1) / length
    return (
        first.memory.total_bytes + waiting_bytes <= memory_bytes
        and then.memory.total_bytes - then.memory.kv_bytes + last_bytes <= memory_bytes
    )


def goal(first, then, switch, new_tokens, objective):
    """Seconds of one prompt batch, or device-seconds of a sequence."""
    if objective == "latency":
        return first.step_s + switch.time_s + new_tokens * then.step_s
    prompt_s = (first.step_s + switch.time_s) / first.step.num_sequences
    return first.mesh.num_ranks * (prompt_s + new_tokens * then.step_s / then.step.num_sequences)


CASES = {
    "one device": ("gpt2", "h100-1", 4, 1, 64, 16),
    "few sequences": ("llama-3-8b", "h100-4", 2, 1, 2048, 64),
    "many prompts, one token": ("llama-3-8b", "h100-4", 16, 16, 2048, 1),
    "multi-query": ("palm-8b", "tpu-v4-8", 16, 8, 512, 64),
    "two near ways": ("llama-3-8b", "tpu-v4-8", 32, 4, 512, 16),
    "experts": ("mixtral-8x7b", "h100-8", 32, 8, 1024, 8),
    "a cube": ("palm-62b", "tpu-v4-64", 16, 16, 512, 64),
    "two hosts": ("llama-3-70b", "h100-16", 8, 4, 512, 64),
}


BY_COST = ("one device", "few sequences", "many prompts, one token", "two hosts")


@pytest.mark.parametrize(
    ("case", "objective"),
    [*product(CASES.values(), ["latency"]), *((CASES[name], "cost") for name in BY_COST)],
    ids=[*CASES, *(f"{name}, cost" for name in BY_COST)],
)
def test_both_phases_against_all_pairs(case, objective):
    model, cluster, batch, prefill_batch, context, new_tokens = case
    shape, where = named_shape(model), resolve_cluster(cluster)
    precisions = [Precision(), INT8]
    plan = plan_inference(
        shape,
        where,
        batch=batch,
        prefill_batch=prefill_batch,
        context=context,
        new_tokens=new_tokens,
        precisions=precisions,
        objective=objective,
    )
    first, then = plan.prefill.best, plan.decode.best
    assert (first.mesh, first.precision, stored(first)) == (
        then.mesh,
        then.precision,
        stored(then),
    )
    assert have_room(first, then, new_tokens)
    assert plan.switch == switch_between(first, then)

    prompt, token = steps_of(batch, prefill_batch, context)
    least = min(
        goal(one, other, switch_between(one, other), new_tokens, objective)
        for mesh, precision in product(every_mesh(where), precisions)
        for one, other in product(
            *(
                [
                    found
                    for step in sized(one_step, objective)
                    for found in every_candidate(shape, mesh, step, precision)
                    if found.has_room
                ]
                for one_step in (prompt, token)
            )
        )
        if stored(one) == stored(other) and have_room(one, other, new_tokens)
    )
    planned = goal(first, then, plan.switch, new_tokens, objective)
    assert least * (1 - 1e-9) <= planned <= 1.01 * least


def sized(step, objective):
    """For cost, any smaller power of two."""
    sizes = {1 << power for power in range(10) if 1 << power < step.num_sequences}
    sizes = sizes if objective == "cost" else set()
    return [replace(step, num_sequences=size) for size in {*sizes, step.num_sequences}]


@pytest.mark.parametrize("objective", ["latency", "cost"])
def test_one_phase_is_choose_layout(objective):
    shape, cluster = named_shape("palm-62b"), resolve_cluster("tpu-v4-16")
    knobs = dict(batch=32, prefill_batch=4, context=256, precisions=[INT8], objective=objective)
    prompt, token = steps_of(32, 4, 256)
    for phase, step in (("prefill", prompt), ("decode", token)):
        plan = plan_inference(shape, cluster, phase=phase, **knobs)
        expected = choose_layout(shape, cluster, step, precisions=[INT8], objective=objective)
        assert getattr(plan, phase) == expected
        assert [plan.prefill, plan.decode, plan.switch].count(None) == 2


def test_what_comes_back_for_both():
    """Chosen together, each is among the candidates of its phase, and its rival is another."""
    shape, cluster = named_shape("palm-62b"), resolve_cluster("tpu-v4-64")
    plan = plan_inference(
        shape, cluster, batch=64, prefill_batch=16, context=512, precisions=[INT8]
    )
    for choice in (plan.prefill, plan.decode):
        assert choice.best in choice.candidates
        assert choice.runner_up.name != choice.best.name
        times = [one.step_s for one in choice.candidates]
        assert times == sorted(times)
    # Its own mesh merges y and z; that of prefill does not.
    assert plan.prefill.best.mesh == plan.decode.best.mesh
    assert (
        plan.decode.best
        not in choose_layout(shape, cluster, plan.decode.best.step, precisions=[INT8]).candidates
    )


@pytest.mark.parametrize(
    ("changed", "field", "limit", "remedy"),
    [
        ({"phase": "train"}, "phase", "must be prefill or decode", "none for both"),
        ({"objective": "speed"}, "objective", "must be latency or cost", "Give one of these"),
        ({"batch": 0}, "batch", "from 1 to", "Correct the number"),
        ({"batch": 1 << 31}, "batch", "from 1 to 2147483647", "Correct the number"),
        ({"prefill_batch": -1}, "prefill_batch", "from 1 to", "Correct the number"),
        ({"context": 0}, "context", "from 1 to", "Correct the number"),
        ({"context": -1, "phase": "decode"}, "context", "from 0 to", "Correct the number"),
        ({"new_tokens": 0}, "new_tokens", "from 1 to", "Correct the number"),
    ],
)
def test_arguments_out_of_range(changed, field, limit, remedy):
    with pytest.raises(InvalidValue) as caught:
        plan_inference(named_shape("gpt2"), resolve_cluster("h100-1"), **LIMITS | changed)
    error = caught.value
    assert (error.field, error.value) == (field, changed[field])
    assert limit in error.limit
    assert remedy in error.remedy


def test_decode_of_a_first_token():
    """Nothing is in memory yet; prefill of nothing is refused above."""
    shape, cluster = named_shape("gpt2"), resolve_cluster("h100-1")
    assert plan_inference(shape, cluster, phase="decode", batch=1, context=0).decode is not None


@pytest.mark.parametrize(
    ("context", "new_tokens"), [(16_384, 4096), (18_740, 1)], ids=["last token", "last prompt"]
)
def test_phases_that_fit_alone_only(context, new_tokens):
    """The memory is full of keys and values when the last token comes, or when the last prompt."""
    shape, cluster = named_shape("llama-3-8b"), resolve_cluster("h100-1")
    for phase in ("prefill", "decode"):
        plan_inference(shape, cluster, phase=phase, batch=26, context=context)
    plan_inference(shape, cluster, batch=26, context=16_384, new_tokens=1)
    with pytest.raises(OutOfMemory) as caught:
        plan_inference(shape, cluster, batch=26, context=context, new_tokens=new_tokens)
    message = str(caught.value)
    assert "cluster='h100-1'" in message
    assert "each phase fits alone, but not" in message
    assert "smaller batch or shorter sequences" in message
