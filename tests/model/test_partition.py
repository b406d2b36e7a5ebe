"""Every layout equals the whole model, and moves the bytes that its price is made of."""

import itertools

import pytest
import torch

from alpage.errors import InvalidValue
from alpage.hardware import resolve_cluster
from alpage.layout import (
    LAYOUTS,
    Attention,
    attentions,
    block_rounds,
    ends_changes,
    redistribute,
    weight_changes,
)
from alpage.models import build, load, open_checkpoint
from alpage.partition import Partitioned, run_inline
from alpage.partition.collectives import Collectives
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama

MESHES = [{"x": 2, "y": 2, "z": 2}, {"x": 1, "y": 2, "z": 4}, {"x": 4, "y": 1, "z": 2}]
B, L = 8, 5
# Sizes that two, four and eight ranks can cut. There are fewer key/value heads than ranks.
WIDTH, VOCAB = 64, 304
CPU = torch.device("cpu")
SIZES = {
    "Llama": {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96},
    "GPT2": {"n_head": 8, "n_embd": WIDTH, "n_inner": 96},
    "Mixtral": {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48},
    "PaLM": {"num_attention_heads": 8, "head_dim": 8, "intermediate_size": 96},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    opened = {}
    for family, sizes in SIZES.items():
        path = tmp_path_factory.mktemp(family)
        if family == "Llama":
            make_tiny_llama(path, vocab_size=VOCAB, **sizes)
        else:
            make_tiny(path, family, vocab_size=VOCAB, **sizes)
        opened[family] = open_checkpoint(path)
    return opened


def tokens_and_positions(vocab_size=VOCAB):
    torch.manual_seed(0)
    return torch.randint(0, vocab_size, (B, L)), torch.arange(L).expand(B, L)


def run_partitioned(checkpoint, attention, mesh, dtype, vocab_size=VOCAB):
    """Return each rank's logits and the bytes that it counted."""
    tokens, positions = tokens_and_positions(vocab_size)

    def work(communicator):
        shape = build(checkpoint.config)[0].shape
        sharder = Partitioned(shape, attention, mesh, communicator, num_tokens=B)
        model = load(checkpoint, dtype=dtype, device=CPU, sharder=sharder)
        return model(tokens, positions), sum(sharder.collectives.payload_bytes.values())

    return run_inline(work, mesh.num_ranks)


def run_whole(checkpoint, dtype, vocab_size=VOCAB):
    """Return the logits of the model in one piece."""
    return load(checkpoint, dtype=dtype, device=CPU)(*tokens_and_positions(vocab_size))


def planned_bytes(checkpoint, attention, mesh, element_bytes):
    """Return the payload that the layout's changes add up to: what the cost model prices."""
    shape = build(checkpoint.config)[0].shape
    sizes = {
        "T": B, "E": shape.d_model, "F": shape.d_ff, "H": shape.num_heads, "G": shape.num_kv_heads,
        "K": shape.head_dim, "V": shape.vocab_size, "N": shape.num_experts,
    }  # fmt: skip
    rounds = block_rounds(shape, attention, mesh)
    blocks = [change for round_ in rounds for change in round_]
    blocks += weight_changes(shape, attention, mesh)

    def payload(change):
        num_tokens = 1 if change.content == "weight" else L
        steps = change.collectives(sizes, mesh, element_bytes * num_tokens)
        return change.num_tensors * sum(step.payload_bytes for step in steps)

    ends = ends_changes(shape, attention, mesh)
    return shape.num_layers * sum(map(payload, blocks)) + sum(map(payload, ends))


CASES = [
    (family, layout.name, "".join(attention.batch), mesh)
    for family, layout, mesh in itertools.product(SIZES, LAYOUTS.values(), range(len(MESHES)))
    for attention in attentions(layout)
]


@pytest.mark.parametrize(("family", "layout", "batch", "mesh"), CASES, ids=str)
def test_every_layout_equals_the_whole_model(family, layout, batch, mesh, checkpoints):
    mesh = resolve_cluster("tpu-v4-8").mesh(**MESHES[mesh])
    attention = Attention(layout=LAYOUTS[layout], batch=tuple(batch))
    exact = run_whole(checkpoints[family], torch.float64)
    is_cube = len(set(dict(mesh.axes).values())) == 1
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5))[: 1 + is_cube]:
        num_bytes = planned_bytes(checkpoints[family], attention, mesh, dtype.itemsize)
        for logits_BLV, payload_bytes in run_partitioned(
            checkpoints[family], attention, mesh, dtype
        ):
            torch.testing.assert_close(logits_BLV.double(), exact, rtol=0, atol=tolerance)
            assert payload_bytes == num_bytes


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("Llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}),
        ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48}),
        ("PaLM", {"num_attention_heads": 6, "head_dim": 8}),
        ("GPT2", {"n_head": 4, "n_embd": 64}),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["ws_1d", "ws_2d", "wg_x", "fsdp"])
def test_heads_and_words_that_do_not_divide_are_padded(family, sizes, layout, tmp_path):
    """SmolLM2 has 9 heads and 3 key/value heads; 300 words are no multiple of 8."""
    sizes = sizes if family == "GPT2" else sizes | {"intermediate_size": 96}
    if family == "Llama":
        make_tiny_llama(tmp_path, **sizes)
    else:
        make_tiny(tmp_path, family, **sizes)
    checkpoint = open_checkpoint(tmp_path)
    mesh = resolve_cluster("tpu-v4-8").mesh(x=2, y=2, z=2)
    expected_BLV = run_whole(checkpoint, torch.float64, vocab_size=300)
    for attention in attentions(LAYOUTS[layout]):
        ranks = run_partitioned(checkpoint, attention, mesh, torch.float64, vocab_size=300)
        for logits_BLV, _ in ranks:
            torch.testing.assert_close(logits_BLV, expected_BLV, rtol=0, atol=1e-10)


def test_widths_that_do_not_divide_are_refused(checkpoints, tmp_path):
    make_tiny_llama(tmp_path, num_attention_heads=8, intermediate_size=90)
    mesh = resolve_cluster("tpu-v4-8").mesh(x=2, y=2, z=2)
    attention = attentions(LAYOUTS["ws_1d"])[0]
    with pytest.raises(InvalidValue, match=r"d_ff=90: cannot be cut into 8 equal parts"):
        run_partitioned(open_checkpoint(tmp_path), attention, mesh, torch.float32)


@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
@pytest.mark.parametrize(("before", "after"), [("", "yx"), ("yx", ""), ("x", "zyx"), ("zyx", "yx")])
def test_keys_and_values_move_between_heads_and_batch(before, after, num_kv_heads):
    """What `planners.switch` prices between prefill and decode, carried out."""
    mesh = resolve_cluster("tpu-v4-8").mesh(x=2, y=2, z=2)
    lying, wanted = (
        Attention(layout=LAYOUTS["ws_2d"], batch=tuple(axes)).kv(num_kv_heads, mesh)
        for axes in (before, after)
    )
    sizes = {"T": 16, "G": num_kv_heads, "K": 3}
    collectives = redistribute(lying, wanted, sizes=sizes, mesh=mesh, element_bytes=8)
    kv_TGK = torch.arange(16 * num_kv_heads * 3.0, dtype=torch.float64).view(16, num_kv_heads, 3)

    def shard(sharding, rank):
        x = kv_TGK
        for dim, cut in enumerate(sharding.dims):
            number = mesh.group(rank, cut.axes).index(rank)
            x = x.chunk(mesh.size(cut.axes), dim)[number]
        return x

    def work(communicator):
        here = Collectives(mesh, communicator)
        x = shard(lying, communicator.rank)
        for collective in collectives:
            x = here.run(x, collective, (0, 1, 2))
        return x, sum(here.payload_bytes.values())

    for rank, (x, payload_bytes) in enumerate(run_inline(work, mesh.num_ranks)):
        assert torch.equal(x, shard(wanted, rank))
        assert payload_bytes == sum(one.payload_bytes for one in collectives)
