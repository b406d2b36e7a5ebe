"""Every sentence is one that is known here, and every number in it is priced again."""

import re
from dataclasses import asdict, replace

import pytest

from alpage.cost import Precision, Step
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.planners import Choice, choose_layout, explain, plan_inference
from alpage.planners.layouts import priced
from alpage.shapes import named_shape
from alpage.units import format_bytes, format_seconds

INT8 = Precision(weights="int8")
TIME = r"[\d,.]+ (?:us|ms|s)"
BYTES = r"[\d,.]+ (?:[KMGT]i)?B"
WAY = r"\w+ on (?:\w=\d+(?:, )?)+"
MORE = rf"{TIME} (?:more|less)"
SENTENCES = {
    "largest": rf"The largest term is (\w+): ({TIME}), (\d+)% of the step"
    r"(?:, which collectives wait for whatever the batch)?",
    "one device": "There is one device, so nothing is cut",
    "whole": r"Every device keeps the whole model and computes all of it: "
    r"(\w+) (\d+) cannot be cut into (\d+) equal parts.*",
    "gathered": r"Weights are gathered for every block: ([\d,]+) tokens? keep the products busy "
    rf"for ({TIME}), which hides (it|all but {TIME})"
    rf"(?:; no layout fits that leaves them where they are"
    rf"|; left where they are, activations would move for ({MORE}) \(({WAY})\))",
    "stationary": rf"Weights stay where they are, and the activations of ([\d,]+) tokens? move for "
    rf"({TIME})(?:; no layout that gathers weights fits and can cut this batch"
    rf"|; gathering weights would take ({TIME}) beyond the products \(({WAY})\))",
    "cut batch": r"Attention is over the batch, which the layout cuts for all products: "
    rf"({BYTES}) of keys and values a device",
    "attention": rf"Attention is over (heads|the batch): ({BYTES}) of keys and values a device; "
    rf"(?:over (heads|the batch) it would be ({BYTES})(?:, and the step ({MORE})|"
    r", (which does not fit))|(?:(1) sequence is|([\d,]+) sequences are) too few to cut)",
    "1D": "With x=1, ws_2d is the 1D layout: features are cut over all devices, embed is whole",
    "mesh": rf"Another mesh, ([\w=, ]+), would take ({TIME})(?:, and ([\w=, ]+\d) ({TIME}))?",
    "alone": rf"Alone it would take ({TIME}), with ({WAY}); "
    "both phases share a mesh and store weights alike",
    "no other": "No other layout fits",
    "runner-up": rf"({WAY}), attention over (heads|the batch)(?:, ([\d,]+) sequences)?"
    r"(?:, (\w+) weights)? would take (?:as long, within a hundredth"
    rf"|({MORE}): (\w+) ([+-]{TIME}))",
    "too large": r"([\d,]+) other (?:way does|ways do) not fit into the memory",
}


def parsed(choice):
    """Return by the name of its sentence what each holds; every one has to match just one."""
    found = {}
    for sentence in explain(choice):
        names = [name for name, form in SENTENCES.items() if re.fullmatch(form, sentence)]
        assert len(names) == 1, sentence
        found[names[0]] = re.fullmatch(SENTENCES[names[0]], sentence).groups()
    return found


def label(one):
    return f"{one.layout.name} on {one.mesh}"


def over(one):
    return "heads" if one.attention_sharding == "heads" else "the batch"


def more(seconds):
    return f"{format_seconds(abs(seconds))} {'more' if seconds >= 0 else 'less'}"


def is_gathering(one):
    layout = one.layout
    return one.mesh.size(layout.stored_embed + layout.stored_ffw) > one.mesh.size(
        layout.embed + layout.ffw
    )


def again(one):
    """What a candidate takes, priced anew."""
    return priced(one.shape, one.attention, one.mesh, one.step, one.precision)


def check_largest(choice, name, seconds, percent):
    terms = asdict(again(choice.best).terms)
    largest = max(terms, key=terms.get)
    assert (f"{name}_s", seconds) == (largest, format_seconds(terms[largest]))
    assert int(percent) == round(100 * terms[largest] / sum(terms.values()))


def check_whole(choice, name, size, parts):
    shape = choice.best.shape
    assert {"d_model": shape.d_model, "d_ff": shape.d_ff}[name] == int(size)
    assert int(size) % int(parts) > 0
    assert choice.best.memory.weights_bytes > shape.num_block_parameters


def fastest(choice, *, gathers):
    """The fastest for the same step in the same dtypes that gathers weights, or not."""
    best = choice.best
    return min(
        (
            again(one)
            for one in choice.candidates
            if is_gathering(one) == gathers
            and (one.step, one.precision) == (best.step, best.precision)
        ),
        key=lambda one: one.step_s,
        default=None,
    )


def check_gathered(choice, tokens, busy, hidden, moved, way):
    best, rival = again(choice.best), fastest(choice, gathers=False)
    assert is_gathering(best)
    assert tokens == f"{best.step.num_tokens:,}"
    assert busy == format_seconds(best.terms.products_s)
    left_s = best.terms.gather_s
    assert hidden == (f"all but {format_seconds(left_s)}" if left_s else "it")
    if rival is None:
        assert moved is None
    else:
        assert way == label(rival)
        assert moved == more(rival.terms.transfer_s - best.terms.transfer_s)


def check_stationary(choice, tokens, moved, gathered, way):
    best, rival = again(choice.best), fastest(choice, gathers=True)
    assert not is_gathering(best)
    assert tokens == f"{best.step.num_tokens:,}"
    assert moved == format_seconds(best.terms.transfer_s)
    if rival is None:
        assert gathered is None
    else:
        assert (gathered, way) == (format_seconds(rival.terms.gather_s), label(rival))


def check_cut_batch(choice, kv_bytes):
    best = again(choice.best)
    assert best.mesh.size(best.layout.tokens) > 1
    assert kv_bytes == format_bytes(best.memory.kv_bytes)


def check_attention(choice, where, kv_bytes, other, other_bytes, difference, unfit, one, few):
    best = again(choice.best)
    assert (where, kv_bytes) == (over(best), format_bytes(best.memory.kv_bytes))
    twins = [
        priced(best.shape, attention, best.mesh, best.step, best.precision)
        for attention in attentions(best.layout)
        if best.mesh.size(attention.sequence_axes) <= best.step.num_sequences
    ]
    twins = [twin for twin in twins if over(twin) != where]
    if not twins:
        assert (one or few) == f"{best.step.num_sequences:,}"
        return
    # Over the batch, as many shards as it fills.
    twin = max(twins, key=lambda twin: twin.mesh.size(twin.attention.sequence_axes))
    assert (other, other_bytes) == (over(twin), format_bytes(twin.memory.kv_bytes))
    assert (unfit is None) == twin.has_room
    if twin.has_room:
        assert difference == more(twin.step_s - best.step_s)


def check_1d(choice):
    assert choice.best.layout.name == "ws_2d"
    assert choice.best.mesh.size("x") == 1


def check_mesh(choice, mesh, seconds, worst_mesh, worst_seconds):
    best = choice.best
    alike = [
        again(one)
        for one in choice.candidates
        if (one.name, one.step, one.precision) == (best.name, best.step, best.precision)
        and one.step_s > 1.01 * best.step_s
    ]
    least, most = (end(one.step_s for one in alike) for end in (min, max))
    found = {(str(one.mesh), one.step_s) for one in alike}
    assert seconds == format_seconds(least)
    assert (mesh, least) in found
    if worst_mesh is None:
        assert most <= 1.01 * least
    else:
        assert most > 1.01 * least
        assert worst_seconds == format_seconds(most)
        assert (worst_mesh, most) in found


def check_alone(choice, seconds, way):
    least = min(map(again, choice.candidates), key=lambda one: one.step_s)
    assert (seconds, way) == (format_seconds(least.step_s), label(least))
    assert least.step_s < choice.best.step_s / 1.01


def check_runner_up(choice, way, where, sequences, weights, difference, term, change):
    best, other = again(choice.best), again(choice.runner_up)
    assert (way, where) == (label(other), over(other))
    assert sequences == (f"{other.step.num_sequences:,}" if other.step != best.step else None)
    assert weights == (other.precision.weights if other.precision != best.precision else None)
    difference_s = other.step_s - best.step_s
    if difference is None:
        assert abs(difference_s) <= 0.01 * best.step_s
        return
    assert difference == more(difference_s)
    before, after = asdict(best.terms), asdict(other.terms)
    changes = {name: after[name] - before[name] for name in before}
    extreme = (max if difference_s > 0 else min)(changes.values())
    assert changes[f"{term}_s"] == extreme
    assert change == f"{'+' if extreme >= 0 else '-'}{format_seconds(abs(extreme))}"


CHECKS = {
    "largest": check_largest,
    "whole": check_whole,
    "gathered": check_gathered,
    "stationary": check_stationary,
    "cut batch": check_cut_batch,
    "attention": check_attention,
    "1D": check_1d,
    "mesh": check_mesh,
    "alone": check_alone,
    "runner-up": check_runner_up,
    "no other": lambda choice: pytest.fail("another fits") if choice.runner_up else None,
    "one device": lambda choice: None,
    "too large": lambda choice, number: None,
}


def chosen(model, cluster, batch, new, past, *, precisions=(INT8,), objective="latency"):
    shape = named_shape(model) if isinstance(model, str) else model
    step = Step(num_sequences=batch, num_new_tokens=new, num_past_tokens=past)
    return choose_layout(
        shape, resolve_cluster(cluster), step, precisions=precisions, objective=objective
    )


def in_turns(model, cluster, prefill_batch, phase):
    plan = plan_inference(
        named_shape(model),
        resolve_cluster(cluster),
        batch=64,
        prefill_batch=prefill_batch,
        context=512,
        precisions=[INT8],
    )
    return getattr(plan, phase)


ODD = replace(named_shape("palm-8b"), d_model=4095, d_ff=16_383)
CASES = {
    "decode": (lambda: chosen("palm-540b", "tpu-v4-64", 64, 1, 2048), {"attention", "mesh"}),
    "heads": (lambda: chosen("palm-540b", "h100-64", 64, 1, 2048), {"1D", "attention"}),
    "too few": (lambda: chosen("palm-540b", "tpu-v4-64", 1, 2048, 0), {"stationary"}),
    "gathered": (
        lambda: chosen("palm-540b", "tpu-v4-64", 512, 2048, 0, precisions=[Precision()]),
        {"gathered", "cut batch", "too large"},
    ),
    "unfit over heads": (
        lambda: chosen("palm-540b", "tpu-v4-64", 512, 1, 2048, precisions=[Precision()]),
        {"attention", "too large"},
    ),
    "one device": (lambda: chosen("gpt2", "h100-1", 4, 1, 128), {"one device"}),
    "whole": (lambda: chosen(ODD, "h100-8", 4, 1, 128), {"whole", "no other"}),
    "cost, dtypes": (
        lambda: chosen(
            "palm-8b", "h100-4", 48, 1, 2048, precisions=[Precision(), INT8], objective="cost"
        ),
        {"runner-up"},
    ),
    "prefill in turns": (lambda: in_turns("palm-62b", "tpu-v4-64", 16, "prefill"), set()),
    "decode in turns": (lambda: in_turns("palm-62b", "tpu-v4-64", 16, "decode"), {"attention"}),
    "two hosts in turns": (lambda: in_turns("llama-3-70b", "h100-16", 16, "decode"), set()),
    "prefill, two hosts": (lambda: in_turns("palm-62b", "h100-16", 16, "prefill"), set()),
}


@pytest.mark.parametrize(("made", "names"), CASES.values(), ids=CASES)
def test_every_number(made, names):
    choice = made()
    found = parsed(choice)
    assert names <= found.keys()
    for name, values in found.items():
        CHECKS[name](choice, *values)
    if "too large" in found:
        assert found["too large"] == (f"{choice.num_too_large:,}",)
    assert ("no other" in found) == (choice.runner_up is None and "one device" not in found)


def test_every_sentence_is_said():
    said = set().union(*(parsed(made()) for made, _ in CASES.values()))
    assert said == set(SENTENCES)


def test_a_batch_that_gathers_less():
    """Where those that stay move less, it says so, not that they move less than nothing more."""
    mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    step = Step(num_sequences=64, num_new_tokens=1, num_past_tokens=128)
    gathers, stays = (
        priced(named_shape("palm-62b"), attentions(LAYOUTS[name])[0], mesh, step, INT8)
        for name in ("wg_x", "ws_2d")
    )
    stays = replace(stays, terms=replace(stays.terms, transfer_s=gathers.terms.transfer_s - 1e-3))
    choice = Choice(best=gathers, runner_up=stays, candidates=(gathers, stays), num_too_large=0)
    assert any("activations would move for 1.00 ms less" in one for one in explain(choice))
