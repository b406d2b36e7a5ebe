"""Seconds of a forward step: by hand on one device, and what must hold on any mesh."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from machines import FLOPS_PER_S, LINK, MEMORY_BYTES_PER_S, machine

from alpage.cost import EFFICIENCIES, Precision, Step, forward_terms
from alpage.cost.forward import padded_sizes
from alpage.errors import InvalidValue
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, Attention, attentions
from alpage.shapes import SHAPES, named_shape
from alpage.workload import ModelShape

TINY = ModelShape(
    num_layers=3,
    d_model=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=5,
    d_ff=16,
    num_ffn_matrices=3,
    vocab_size=50,
    is_tied=True,
)
EXPERTS = replace(TINY, num_experts=8, num_active_experts=2)
HEADS, KV_HEADS, HIDDEN = 4 * 5, 2 * 5, 16
BFLOAT16 = Precision()
FAST = 1e30  # of memory or arithmetic that must not limit


def step_of(num_sequences, num_new_tokens=1, num_past_tokens=0):
    return Step(
        num_sequences=num_sequences, num_new_tokens=num_new_tokens, num_past_tokens=num_past_tokens
    )


def plain(layout):
    """Attention over heads, or over the sequences that the layout's tokens are."""
    return Attention(layout=LAYOUTS[layout], batch=LAYOUTS[layout].tokens)


def alone(shape, step, precision=BFLOAT16, **changed):
    mesh = machine(**changed).mesh(x=1, y=1, z=1)
    return forward_terms(shape, plain("ws_2d"), mesh, step, precision)


def test_one_device_limited_by_memory():
    """Each weight of two bytes is read once, and keys and values of 1 + 6 tokens twice over."""
    terms = alone(TINY, step_of(2, 1, 6), flops_per_s=FAST)
    block = 8 * (2 * HEADS + 2 * KV_HEADS + 3 * HIDDEN)
    assert terms.products_s == pytest.approx(2 * (3 * block + 8 * 50) / MEMORY_BYTES_PER_S)
    assert terms.attention_s == pytest.approx(3 * (2 * 7) * 2 * KV_HEADS * 2 / MEMORY_BYTES_PER_S)
    assert (terms.transfer_s, terms.latency_s, terms.gather_s) == (0, 0, 0)
    assert terms.step_s == pytest.approx(terms.products_s + terms.attention_s)


def test_one_device_limited_by_arithmetic():
    """Two operations a weight and token; a query at p sees p + 1 keys; logits are for the last."""
    terms = alone(TINY, step_of(2, 4, 6), memory_bytes_per_s=FAST)
    block = 8 * (2 * HEADS + 2 * KV_HEADS + 3 * HIDDEN)
    products = 2 * 8 * 3 * block + 2 * 2 * 8 * 50
    assert terms.products_s == pytest.approx(products / FLOPS_PER_S)
    num_pairs = 2 * (7 + 8 + 9 + 10)
    assert terms.attention_s == pytest.approx(3 * 4 * num_pairs * HEADS / FLOPS_PER_S)


def test_int8_halves_what_memory_limits():
    step, int8 = step_of(1), Precision(weights="int8")
    whole, half = (alone(TINY, step, one, flops_per_s=FAST) for one in (BFLOAT16, int8))
    assert half.products_s == pytest.approx(whole.products_s / 2)
    assert half.attention_s == whole.attention_s


def test_fused_products():
    """A parallel block has as many weights and operations; on one device it takes the same."""
    step, parallel = step_of(2, 4), replace(TINY, is_parallel=True)
    assert alone(parallel, step).step_s == pytest.approx(alone(TINY, step).step_s)


@pytest.mark.parametrize(("num_tokens", "num_reached"), [(1, 2), (3, 6), (4, 8), (100, 8)])
def test_experts_that_are_read(num_tokens, num_reached):
    """Tokens spread evenly: until all experts are reached, each token reads two of its own."""
    terms = alone(EXPERTS, step_of(num_tokens), flops_per_s=FAST)
    wide = alone(replace(TINY, d_ff=num_reached * HIDDEN), step_of(num_tokens), flops_per_s=FAST)
    assert terms.products_s == pytest.approx(wide.products_s)


def test_experts_that_are_computed():
    """However they spread, a token is multiplied with two."""
    terms = alone(EXPERTS, step_of(40), memory_bytes_per_s=FAST)
    wide = alone(replace(TINY, d_ff=2 * HIDDEN), step_of(40), memory_bytes_per_s=FAST)
    assert terms.products_s == pytest.approx(wide.products_s)


@pytest.fixture
def asynchronous(monkeypatch):
    """A device of the tests that does at once what does not wait for each other."""
    changed = {"cpu": replace(EFFICIENCIES["cpu"], is_asynchronous=True)}
    monkeypatch.setattr("alpage.cost.forward.EFFICIENCIES", changed)


BLOCK_BYTES = 2 * 8 * (2 * HEADS + 2 * KV_HEADS + 3 * HIDDEN)


@pytest.mark.usefixtures("asynchronous")
def test_gathers_are_hidden_behind_products():
    """Each of two devices computes its tokens with all weights, half of which come from the other.

    Words are cut whatever the layout, and logits of half of them limited by memory. A gather waits
    for a hop; only what it takes beyond a block's products counts.
    """
    gather_s = LINK["latency_s"] + BLOCK_BYTES / 2 / LINK["bytes_per_s"]
    mesh = machine(1, 2).mesh(x=1, y=1, z=2)
    shown = forward_terms(TINY, plain("fsdp"), mesh, step_of(2), Precision())
    logits_s = 2 * 8 * 50 / MEMORY_BYTES_PER_S
    blocks_s = alone(TINY, step_of(1)).products_s - logits_s
    assert shown.products_s == pytest.approx(blocks_s + logits_s / 2)
    assert shown.gather_s == pytest.approx(3 * gather_s - blocks_s)
    hidden = forward_terms(TINY, plain("fsdp"), mesh, step_of(200_000), Precision())
    assert hidden.gather_s == 0


def test_gathers_that_nothing_hides():
    """Feed-forward, queries, and keys with values are gathered one after the other."""
    gather_s = 3 * LINK["latency_s"] + BLOCK_BYTES / 2 / LINK["bytes_per_s"]
    mesh = machine(1, 2).mesh(x=1, y=1, z=2)
    shown = forward_terms(TINY, plain("fsdp"), mesh, step_of(200_000), Precision())
    assert shown.gather_s == pytest.approx(3 * gather_s)


@pytest.mark.usefixtures("asynchronous")
def test_alike_changes_wait_once():
    """Megatron's block waits for two all-reduces, a parallel one for one; the rest is the ends'."""
    mesh = machine(1, 4).mesh(x=1, y=1, z=4)
    shape = replace(TINY, num_kv_heads=4)
    rounds = []
    for one in (shape, replace(shape, is_parallel=True)):
        few, many = (replace(one, num_layers=num) for num in (1, 2))
        latency_s = [
            forward_terms(more, plain("megatron"), mesh, step_of(4), Precision()).latency_s
            for more in (few, many)
        ]
        rounds.append(latency_s[1] - latency_s[0])
    all_reduce_s = 2 * 2 * LINK["latency_s"]
    assert rounds == [2 * all_reduce_s, all_reduce_s]


def test_padded_sizes():
    """PaLM's 48 heads become 64 where three axes cut them; 5 sequences become 16."""
    mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    heads, *_, both, whole = attentions(LAYOUTS["ws_2d"])
    sizes = padded_sizes(named_shape("palm-540b"), heads, mesh, step_of(5, 3))
    assert (sizes["T"], sizes["H"], sizes["V"]) == (15, 64, 256_128)
    assert padded_sizes(named_shape("palm-540b"), both, mesh, step_of(5, 3))["T"] == 16 * 3
    assert padded_sizes(named_shape("gpt2"), whole, mesh, step_of(64))["V"] == 50_304
    gathered = padded_sizes(named_shape("palm-540b"), plain("wg_x"), mesh, step_of(8))
    assert gathered["H"] == 48


def test_padding_is_paid_for():
    """A batch of 5 over 4 ranks takes what one of 8 takes."""
    mesh = machine(1, 4).mesh(x=1, y=1, z=4)
    shape, attention = replace(TINY, num_kv_heads=1), attentions(LAYOUTS["ws_2d"])[-1]
    five, eight = (
        forward_terms(shape, attention, mesh, step_of(num), Precision()) for num in (5, 8)
    )
    assert five == eight


def test_indivisible_width():
    mesh, shape = machine(1, 4).mesh(x=1, y=1, z=4), replace(TINY, d_ff=18)
    with pytest.raises(InvalidValue, match=r"=18: cannot be cut into 4 equal parts, as ws_2d"):
        forward_terms(shape, plain("ws_2d"), mesh, step_of(1), Precision())


def test_unknown_speed():
    mesh = resolve_cluster("v100-8").mesh(x=1, y=1, z=8)
    with pytest.raises(InvalidValue, match=r"dtype='bfloat16': is none that the speed of Tesla V1"):
        forward_terms(named_shape("gpt2"), plain("ws_2d"), mesh, step_of(1), Precision())


def test_efficiency_of_a_product():
    """Half of the rows that reach half, and no features that count: a third of what is reached."""
    one = replace(EFFICIENCIES["tpu"], matmul=0.9, half_rows=20, half_features=0)
    assert one.of_matmul(10, 100, 100) == pytest.approx(0.3)
    assert one.of_matmul(1e9, 100, 100) == pytest.approx(0.9)
    assert replace(one, half_features=100).of_matmul(1e9, 100, 100) == pytest.approx(0.9 / 4)


CLUSTERS = ("tpu-v4-16", "a100-8", "h100-16", "h200-32", "v100-16", "cpu-4")
PRECISION = {"v100": Precision(weights="float16", compute="float16", kv="float16")}


@st.composite
def placed(draw):
    """A model on a mesh of some cluster, in some layout, attending in some way."""
    name = draw(st.sampled_from(CLUSTERS))
    cluster = resolve_cluster(name)
    directions = cluster.torus or (2,) * (cluster.num_devices.bit_length() - 1)
    lengths = {"x": 1, "y": 1, "z": 1}
    for size in directions:
        lengths[draw(st.sampled_from("xyz"))] *= size
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    attention = draw(
        st.sampled_from([one for layout in LAYOUTS.values() for one in attentions(layout)])
    )
    return shape, attention, cluster.mesh(**lengths), PRECISION.get(name[:4], Precision())


STEPS = st.builds(step_of, st.integers(1, 300), st.sampled_from([1, 7, 128]), st.integers(0, 4096))


def seconds(shape, attention, mesh, step, precision):
    try:
        terms = forward_terms(shape, attention, mesh, step, precision)
    except InvalidValue:
        assume(False)
    assert min(terms.products_s, terms.attention_s) > 0
    assert min(terms.transfer_s, terms.latency_s, terms.gather_s) >= 0
    return terms.step_s


@given(placed(), STEPS, st.integers(0, 100), st.integers(0, 1000))
def test_more_work_never_takes_less(where, step, more_sequences, more_past):
    shape, attention, mesh, precision = where
    larger = replace(
        step,
        num_sequences=step.num_sequences + more_sequences,
        num_past_tokens=step.num_past_tokens + more_past,
    )
    before, after = (seconds(shape, attention, mesh, one, precision) for one in (step, larger))
    assert after >= before * (1 - 1e-12)


@given(placed(), STEPS, st.sampled_from(["flops", "memory", "link", "network", "latency"]))
def test_a_better_machine_never_takes_longer(where, step, part):
    shape, attention, mesh, precision = where
    cluster = mesh.cluster
    assume(part != "network" or cluster.network)
    device, link = cluster.device, cluster.link
    better = {
        "flops": lambda: replace(
            cluster,
            device=replace(
                device,
                flops_per_s={dtype: 2 * speed for dtype, speed in device.flops_per_s.items()},
            ),
        ),
        "memory": lambda: replace(
            cluster, device=replace(device, memory_bytes_per_s=2 * device.memory_bytes_per_s)
        ),
        "link": lambda: replace(cluster, link=replace(link, bytes_per_s=2 * link.bytes_per_s)),
        "latency": lambda: replace(cluster, link=replace(link, latency_s=link.latency_s / 2)),
        "network": lambda: replace(
            cluster,
            network=replace(cluster.network, bytes_per_s=2 * cluster.network.bytes_per_s),
        ),
    }[part]()
    before = seconds(shape, attention, mesh, step, precision)
    after = seconds(shape, attention, replace(mesh, cluster=better), step, precision)
    assert after <= before * (1 + 1e-12)
