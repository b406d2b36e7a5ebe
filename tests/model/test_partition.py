"""Every layout equals the whole model, and moves the bytes that its price is made of."""

import itertools

import pytest
import torch

from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions, block_rounds, ends_changes, weight_changes
from alpage.models import load, open_checkpoint
from alpage.partition import Partitioned, run_inline
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama

MESHES = [{"x": 2, "y": 2, "z": 2}, {"x": 1, "y": 2, "z": 4}, {"x": 4, "y": 1, "z": 2}]
B, L = 8, 5
# Sizes that two, four and eight ranks can cut. There are fewer key/value heads than ranks.
WIDTH, VOCAB = 64, 304
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


def tokens_and_positions():
    torch.manual_seed(0)
    return torch.randint(0, VOCAB, (B, L)), torch.arange(L).expand(B, L)


def run_partitioned(checkpoint, attention, mesh, dtype):
    """Return each rank's logits and the bytes that it counted."""
    tokens, positions = tokens_and_positions()

    def work(communicator):
        shape = load(checkpoint, dtype=dtype, device=torch.device("cpu")).shape
        sharder = Partitioned(shape, attention, mesh, communicator, num_tokens=B)
        model = load(checkpoint, dtype=dtype, device=torch.device("cpu"), sharder=sharder)
        return model(tokens, positions), sum(sharder.collectives.payload_bytes.values())

    return run_inline(work, mesh.num_ranks)


def planned_bytes(shape, attention, mesh, element_bytes):
    """Return the payload that the layout's changes add up to: what the cost model prices."""
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
    (family, layout.name, len(attention.batch), mesh)
    for family, layout, mesh in itertools.product(SIZES, LAYOUTS.values(), range(len(MESHES)))
    for attention in attentions(layout)
]


@pytest.mark.parametrize(("family", "layout", "num_batch_axes", "mesh"), CASES, ids=str)
def test_every_layout_equals_the_whole_model(family, layout, num_batch_axes, mesh, checkpoints):
    dtype, tolerance = torch.float64, 1e-10
    mesh = resolve_cluster("tpu-v4-8").mesh(**MESHES[mesh])
    attention = attentions(LAYOUTS[layout])[num_batch_axes]
    whole = load(checkpoints[family], dtype=dtype, device=torch.device("cpu"))
    expected_BLV = whole(*tokens_and_positions())
    ranks = run_partitioned(checkpoints[family], attention, mesh, dtype)
    token_axes = attention.layout.tokens
    for rank, (logits_BLV, payload_bytes) in enumerate(ranks):
        shards = expected_BLV.chunk(mesh.size(token_axes))
        number = 0
        for axis in token_axes:
            number = number * mesh.size(axis) + mesh.coordinates(rank)[axis]
        torch.testing.assert_close(logits_BLV, shards[number], rtol=0, atol=tolerance)
        assert payload_bytes == planned_bytes(whole.shape, attention, mesh, dtype.itemsize)
