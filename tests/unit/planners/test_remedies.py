"""What remedies save: never less than nothing, together the most, and PaLM's numbers by hand."""

from dataclasses import replace

import pytest

from alpage.cost import EFFICIENCIES, Precision, Step
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.planners import Choice, candidates, choose_layout, plan_inference, remedies
from alpage.planners.layouts import priced
from alpage.shapes import named_shape

INT8 = Precision(weights="int8")
DECODE = Step(num_sequences=64, num_new_tokens=1, num_past_tokens=2048)


def palm(cluster, precision=INT8):
    return choose_layout(
        named_shape("palm-540b"), resolve_cluster(cluster), DECODE, precisions=[precision]
    )


def named(found):
    return {remedy.name: remedy for remedy in found.each}


def both(model, cluster, prefill_batch, precision=INT8):
    plan = plan_inference(
        named_shape(model),
        resolve_cluster(cluster),
        batch=64,
        prefill_batch=prefill_batch,
        context=512,
        precisions=[precision],
    )
    return [plan.prefill, plan.decode]


CHOICES = {
    "PaLM on TPUs": lambda: [palm("tpu-v4-64"), palm("tpu-v4-64", Precision())],
    "PaLM on H100": lambda: [palm("h100-64")],
    # On a mesh that decode would not have alone.
    "in turns": lambda: both("palm-62b", "tpu-v4-64", 16),
    "in turns, two hosts": lambda: both("llama-3-70b", "h100-16", 16, Precision(kv="int8")),
    "experts": lambda: both("mixtral-8x7b", "h100-8", 1, Precision(kv="float8")),
    "Ethernet": lambda: both("llama-3-8b", "cpu-8", 8, Precision()),
    "one device": lambda: both("gpt2", "h100-1", 1),
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_nothing_is_lost_and_together_is_the_most(choices):
    for choice in choices():
        best, found = choice.best, remedies(choice)
        for remedy in (*found.each, found.together):
            assert remedy.saved_s >= 0
            assert remedy.saved_s == pytest.approx(best.step_s - remedy.step_s)
            assert remedy.candidate.step == best.step
            assert remedy.candidate.has_room
            assert found.together.step_s <= remedy.step_s * (1 + 1e-9)
        bounds = found.bounds
        assert bounds.roofline_s == best.terms.products_s + best.terms.attention_s
        # Reads alone are no more than the roofline, nor arithmetic at no less than its efficiency.
        assert bounds.weights_s <= best.terms.products_s
        assert bounds.kv_s <= best.terms.attention_s
        assert bounds.compute_s <= bounds.roofline_s


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        (Precision(), ["int8_weights", "int8_kv"]),
        (INT8, ["int8_kv"]),
        (Precision(kv="float8"), ["int8_weights"]),
        (Precision(weights="float8", kv="int8"), []),
    ],
)
def test_8_bits_where_there_are_more(precision, names):
    found = remedies(palm("h100-64", precision))
    assert [name for name in named(found) if "int8" in name] == names


def test_overlap_hides_the_shorter():
    """Of prefill that is transfers; where a link is slow, products."""
    choice = palm("tpu-v4-64")
    terms = choice.best.terms
    assert terms.transfer_s < terms.products_s
    assert named(remedies(choice))["overlap"].saved_s == pytest.approx(terms.transfer_s)
    (prefill, _) = both("llama-3-8b", "cpu-8", 8, Precision())
    assert prefill.best.terms.transfer_s > prefill.best.terms.products_s
    saved_s = named(remedies(prefill))["overlap"].saved_s
    assert saved_s == pytest.approx(prefill.best.terms.products_s)


@pytest.mark.parametrize(("num_devices", "num_hops"), [(2, 1), (4, 2), (8, 3)])
def test_one_shot_by_hand(num_devices, num_hops):
    """Behind a switch: the link's latency once, for hops that also wait for their programs."""
    cluster = resolve_cluster(f"h100-{num_devices}")
    mesh = cluster.mesh(x=1, y=1, z=num_devices)
    over_heads, *_ = attentions(LAYOUTS["megatron"])
    best = priced(named_shape("palm-8b"), over_heads, mesh, DECODE, INT8)
    choice = Choice(best=best, runner_up=None, candidates=(best,), num_too_large=0)
    left_s = best.terms.latency_s - named(remedies(choice))["one_shot"].saved_s
    link_s, hop_s = cluster.link.latency_s, EFFICIENCIES["gpu"].hop_s
    ratio = link_s / (num_hops * (link_s + hop_s))
    assert left_s / best.terms.latency_s == pytest.approx(ratio)


def test_other_layouts_are_more_than_the_papers():
    """Attention over heads and a part of the batch waits for fewer hops."""
    choice = palm("tpu-v4-64")
    remedy = named(remedies(choice))["other_layout"]
    every = candidates(choice.best.shape, choice.best.mesh.cluster, DECODE, INT8, has_mixed=True)
    assert remedy.step_s == min(one.step_s for one in every if one.has_room)
    assert remedy.step_s < choice.candidates[0].step_s
    assert remedy.candidate not in choice.candidates


def test_bounds_of_palm_by_hand():
    """PaLM 540B decodes 64 sequences behind 2048 tokens with int8 weights; measured were 28.5 ms.

    With weights and keys as they are and products at 65 % of the peak, their sum would be 14.7 ms.
    Ours has the products at the 85 % of large ones, weights with 64 heads for 48, as the paper's
    program pads them, and projections of the one head of keys on all of y and z, and the scores.
    """
    choice = palm("tpu-v4-64")
    best, bounds = choice.best, remedies(choice).bounds
    assert best.step_s == pytest.approx(28.5e-3, rel=0.05)

    shape, num = best.shape, 64
    device = best.mesh.cluster.device
    peak, bandwidth = (
        num * device.flops_per_s_of("bfloat16"),
        num * device.memory_bytes_per_s * 0.84,
    )
    compute_s = 2 * shape.num_parameters * 64 / peak
    weights_s = shape.num_parameters / bandwidth
    kv_s = 64 * 2049 * shape.kv_bytes_per_token(2) / bandwidth
    assert compute_s / 0.65 + weights_s + kv_s == pytest.approx(14.7e-3, rel=0.01)

    padded = replace(shape, num_heads=64)
    copies = best.mesh.size("yz") - 1
    kv_weights = shape.num_layers * 2 * shape.d_model * shape.head_dim
    scores_bytes = shape.num_layers * 64 * 64 * 2049 * 12
    assert bounds.compute_s == pytest.approx(compute_s / 0.85, rel=0.02)
    assert bounds.weights_s == pytest.approx(
        (padded.num_parameters + copies * kv_weights) / bandwidth, rel=0.01
    )
    assert bounds.kv_s == pytest.approx(kv_s + scores_bytes / bandwidth, rel=0.01)
    assert bounds.additive_s == pytest.approx(14.0e-3, rel=0.01)


def test_palm_on_gpus():
    """The same plan: H200 differs from H100 by what it reads, not by what it computes."""
    h100, h200 = (remedies(palm(name)) for name in ("h100-64", "h200-64"))
    assert h200.bounds.compute_s == h100.bounds.compute_s
    ratio = (
        resolve_cluster("h100-64").device.memory_bytes_per_s
        / resolve_cluster("h200-64").device.memory_bytes_per_s
    )
    assert h200.bounds.weights_s == pytest.approx(h100.bounds.weights_s * ratio)
    assert h200.bounds.kv_s == pytest.approx(h100.bounds.kv_s * ratio)
    for found in (h100, h200):
        # What nobody has is mostly the wait.
        assert max(found.each, key=lambda one: one.saved_s).name == "one_shot"
        assert found.together.step_s < min(one.step_s for one in found.each) / 2
