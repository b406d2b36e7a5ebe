"""Memory of a device: by hand, and less of it the more devices there are."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import machine

from alpage.cost import Precision, Step, device_memory, max_context
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.shapes import SHAPES, named_shape

STEP = Step(num_sequences=64, num_new_tokens=3, num_past_tokens=97)


def over_heads(layout):
    return attentions(LAYOUTS[layout])[0]


def mesh_of(**sizes):
    num_devices = sizes["x"] * sizes["y"] * sizes["z"]
    return machine(1, num_devices).mesh(**sizes)


ONE = mesh_of(x=1, y=1, z=1)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_one_device_keeps_all(name):
    """All weights but norms and routers, which are too small to plan for."""
    shape = SHAPES[name]
    memory = device_memory(shape, over_heads("ws_2d"), ONE, STEP, Precision())
    norms = (2 * shape.num_layers + 1) * shape.d_model
    routers = shape.num_layers * shape.d_model * shape.num_experts
    ours = memory.weights_bytes / 2
    assert shape.num_parameters - norms - routers <= ours < shape.num_parameters
    assert memory.kv_bytes == 64 * 100 * shape.kv_bytes_per_token(2)
    assert memory.residual_bytes == 64 * 3 * shape.d_model * 2
    assert memory.gathered_bytes == 0
    assert memory.total_bytes == memory.weights_bytes + memory.kv_bytes + memory.residual_bytes


def test_weights_that_are_gathered():
    """One block's are whole while they are used; stored are an eighth of all."""
    shape, mesh = named_shape("llama-2-70b"), mesh_of(x=2, y=2, z=2)
    memory = device_memory(shape, over_heads("fsdp"), mesh, STEP, Precision())
    assert memory.gathered_bytes == 2 * shape.num_block_parameters / shape.num_layers
    vocab = 2 * shape.vocab_size * shape.d_model
    assert memory.weights_bytes == 2 * (shape.num_block_parameters + vocab) / 8
    assert memory.kv_bytes == 64 / 8 * 100 * shape.kv_bytes_per_token(2)
    assert memory.residual_bytes == 64 / 8 * 3 * shape.d_model * 2


def test_one_kv_head_lies_on_all():
    """Unless the batch is cut: by 4 sequences at a time along z, or by all."""
    shape, mesh = named_shape("palm-8b"), mesh_of(x=2, y=2, z=4)
    all_bytes = 64 * 100 * shape.kv_bytes_per_token(2)
    kept = [
        all_bytes / device_memory(shape, one, mesh, STEP, Precision()).kv_bytes
        for one in attentions(LAYOUTS["ws_2d"])
    ]
    assert kept == [1, 2, 4, 16]


def test_kv_heads_are_cut_as_far_as_they_go():
    shape = replace(named_shape("llama-3-8b"), num_kv_heads=4)
    memory = [
        device_memory(shape, over_heads("ws_2d"), mesh_of(x=1, y=y, z=8 // y), STEP, Precision())
        for y in (1, 2, 4)
    ]
    whole = 64 * 100 * shape.kv_bytes_per_token(2)
    # Heads are cut by whole axes, z first: 8 do not divide 4 heads, 4 and 2 do.
    assert [whole / one.kv_bytes for one in memory] == [1, 4, 2]


def test_dtypes():
    shape, int8 = named_shape("palm-8b"), Precision(weights="int8", kv="float8")
    wide, narrow = (
        device_memory(shape, over_heads("ws_2d"), ONE, STEP, one) for one in (Precision(), int8)
    )
    assert narrow.weights_bytes == wide.weights_bytes / 2
    assert narrow.kv_bytes == wide.kv_bytes / 2
    assert narrow.residual_bytes == wide.residual_bytes


MEASURES = ("weights_bytes", "kv_bytes", "gathered_bytes", "residual_bytes", "total_bytes")


@given(
    st.sampled_from([1, 128]),
    st.sampled_from([one for layout in LAYOUTS.values() for one in attentions(layout)]),
    st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
    st.sampled_from("xyz"),
)
def test_more_devices_keep_less(num_kv_heads, attention, sizes, longer):
    """Where nothing is padded: 128 query heads, and one or as many of keys and values."""
    shape = replace(named_shape("mt-nlg-530b"), num_kv_heads=num_kv_heads)
    lengths, step = dict(zip("xyz", sizes, strict=True)), replace(STEP, num_sequences=128)
    few, many = (
        device_memory(shape, attention, mesh_of(**one), step, Precision())
        for one in (lengths, lengths | {longer: 2 * lengths[longer]})
    )
    if few.gathered_bytes == 0:  # an axis of one rank had nothing to gather over
        many = replace(many, gathered_bytes=0)
    for measure in MEASURES:
        assert getattr(many, measure) <= getattr(few, measure)
    assert many.weights_bytes < few.weights_bytes


def test_context_fills_what_is_given():
    """To the last token, which for batch-sharded keys and values are those of 64 chips."""
    shape, mesh = named_shape("palm-540b"), resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    attention = attentions(LAYOUTS["ws_2d"])[-1]
    tokens = max_context(
        shape, attention, mesh, num_sequences=512, kv_bytes=1e10, precision=Precision()
    )
    token_bytes = shape.kv_bytes_per_token(2) * 512 / 64
    assert tokens * token_bytes <= 1e10 < (tokens + 1) * token_bytes
