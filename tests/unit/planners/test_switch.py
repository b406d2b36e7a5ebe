"""How keys and values move between the phases: bytes and seconds by hand."""

from dataclasses import replace

import pytest

from alpage.cost import EFFICIENCIES, Precision, Step
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.planners.layouts import priced
from alpage.planners.switch import switch_between
from alpage.shapes import named_shape
from alpage.workload import KV_SCALE_BYTES

INT8 = Precision(weights="int8")


def way(model, mesh, layout, num_batch_axes, batch, *, new=1, past=0, precision=INT8):
    """Attention over the batch by so many axes of the heads, beside those of tokens."""
    step = Step(num_sequences=batch, num_new_tokens=new, num_past_tokens=past)
    shape = named_shape(model) if isinstance(model, str) else model
    num_axes = len(LAYOUTS[layout].tokens) + num_batch_axes
    (attention,) = (one for one in attentions(LAYOUTS[layout]) if len(one.batch) == num_axes)
    return priced(shape, attention, mesh, step, precision)


def test_heads_to_batch_by_hand():
    """Llama 3 70B has 8 heads of keys, so 4 ranks have 2 each and give three quarters away."""
    shape = replace(named_shape("llama-3-70b"), num_layers=10)
    mesh = resolve_cluster("h100-4").mesh(x=1, y=1, z=4)
    prefill = way(shape, mesh, "ws_2d", 0, 8, new=512)
    decode = way(shape, mesh, "ws_2d", 3, 8, past=512)
    switch = switch_between(prefill, decode)
    assert (str(switch.before), str(switch.after)) == ("TG_zyxK", "T_zyxGK")
    (moved,) = switch.collectives
    assert (moved.kind, moved.axes) == ("all_to_all", ("z",))
    tensor_bytes = 8 * 512 * 2 * 128 * 2  # tokens, heads, head_dim, bfloat16
    wire_bytes = 10 * 2 * tensor_bytes * 3 // 4
    assert switch.wire_bytes == wire_bytes
    link = mesh.cluster.link
    # Two hops behind a switch, once for keys and values.
    waits_s = 10 * 2 * (link.latency_s + EFFICIENCIES["gpu"].hop_s)
    assert switch.time_s == pytest.approx(wire_bytes / link.bytes_per_s + waits_s)


def test_int8_halves_the_bytes_but_for_the_scales():
    mesh = resolve_cluster("h100-4").mesh(x=1, y=1, z=4)

    def wire_bytes(kv):
        precision = Precision(kv=kv)
        prefill = way("llama-3-8b", mesh, "ws_2d", 0, 8, new=512, precision=precision)
        decode = way("llama-3-8b", mesh, "ws_2d", 3, 8, past=512, precision=precision)
        return switch_between(prefill, decode).wire_bytes

    head_dim = named_shape("llama-3-8b").head_dim
    assert wire_bytes("float8") > 0
    assert wire_bytes("bfloat16") == 2 * wire_bytes("float8")
    assert wire_bytes("int8") / wire_bytes("float8") == (head_dim + KV_SCALE_BYTES) / head_dim


def test_fewer_sequences_than_shards():
    """One sequence goes to one device, which gets it whole, as if each of four got one."""
    mesh = resolve_cluster("h100-4").mesh(x=1, y=1, z=4)
    decode = way("llama-3-8b", mesh, "ws_2d", 3, 8, past=512)
    one, four, five = (
        switch_between(way("llama-3-8b", mesh, "ws_2d", 0, batch, new=512), decode)
        for batch in (1, 4, 5)
    )
    assert one.wire_bytes == four.wire_bytes == five.wire_bytes / 2
    sequence_bytes = named_shape("llama-3-8b").kv_bytes_per_token(2) * 512
    assert one.wire_bytes == sequence_bytes * 3 // 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ws_2d", 0), ("ws_2d", 0)),
        (("ws_2d", 3), ("ws_2d", 3)),
        # Sequences have other numbers, and lie on as many devices.
        (("wg_xyz", 0), ("ws_2d", 3)),
        (("wg_xy", 1), ("ws_2d", 3)),
    ],
)
def test_nothing_moves_where_both_lie_alike(before, after):
    mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    prefill = way("palm-540b", mesh, *before, 64, new=128)
    decode = way("palm-540b", mesh, *after, 64, past=128)
    switch = switch_between(prefill, decode)
    assert (switch.collectives, switch.wire_bytes, switch.time_s) == ((), 0, 0.0)


def test_copies_are_cut_for_nothing():
    """PaLM has one head of keys: over heads it lies on every device, as in the paper's fig. 5."""
    mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    prefill = way("palm-540b", mesh, "ws_2d", 0, 1, new=2048)
    decode = way("palm-540b", mesh, "ws_2d", 3, 64, past=2048)
    switch = switch_between(prefill, decode)
    assert [one.kind for one in switch.collectives] == ["slice"]
    assert (switch.wire_bytes, switch.time_s) == (0, 0.0)
    back = switch_between(replace(decode, step=prefill.step), prefill)
    assert [one.kind for one in back.collectives] == ["all_gather"]
