"""The Llama file against transformers, on tiny random checkpoints."""

import dataclasses

import pytest
import torch

from alpage.errors import BadCheckpoint
from alpage.models import load, open_checkpoint
from alpage.models.architectures import build
from tiny_llama import VOCAB_SIZE, make_tiny_llama

# Sums of a few hundred float32 products, in another order.
FLOAT32_TOLERANCE = 2e-5

CASES = {
    "grouped heads": {},
    "one head each": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "own head dim": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3 rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn rope": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "large theta": {"rope_theta": 500000.0},
    "mistral": {"family": "Mistral", "sliding_window": 16},
}


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_logits_equal_transformers(sizes, tmp_path):
    oracle = make_tiny_llama(tmp_path, **sizes)
    model = load(open_checkpoint(tmp_path), dtype=torch.float32, device=torch.device("cpu"))
    tokens_BL = torch.randint(0, VOCAB_SIZE, (2, 100))
    positions_BL = torch.arange(100).expand(2, 100)
    with torch.no_grad():
        expected_BLV = oracle(tokens_BL).logits
        logits_BLV = model(tokens_BL, positions_BL)
    scale = expected_BLV.abs().max()
    assert (logits_BLV - expected_BLV).abs().max() < FLOAT32_TOLERANCE * scale


BAD_ROPES = [
    {"rope_type": "linear", "factor": "2"},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "linear", "factor": -1},
    {"rope_type": "linear"},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": None},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": -1},
    {"rope_type": "factors", "factors": [1.0]},
    {"rope_theta": "abc"},
    {"rope_theta": -5},
]


@pytest.mark.parametrize("scaling", BAD_ROPES, ids=str)
def test_bad_rope_numbers_are_refused(scaling, tmp_path):
    make_tiny_llama(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = {k: v for k, v in checkpoint.config.items() if k != "rope_parameters"}
    with pytest.raises(BadCheckpoint, match="rope"):
        build(config | {"rope_scaling": scaling})


HUGE = [
    {"hidden_size": 2**30, "vocab_size": 2**30},
    # Each of a sound size, and together more than any memory.
    {"hidden_size": 2**19, "vocab_size": 2**19, "num_attention_heads": 2**19, "head_dim": 2**19},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 3},
    {"rms_norm_eps": 10**400},
]


@pytest.mark.parametrize("sizes", HUGE, ids=str)
def test_sizes_that_the_tensors_do_not_back_take_no_memory_and_no_time(sizes, tmp_path):
    make_tiny_llama(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint = dataclasses.replace(checkpoint, config={**checkpoint.config, **sizes})
    with pytest.raises(BadCheckpoint):
        load(checkpoint, dtype=torch.float32, device=torch.device("cpu"))


def test_positions_cost_nothing(tmp_path):
    make_tiny_llama(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = {**checkpoint.config, "max_position_embeddings": 2**31 - 1}
    checkpoint = dataclasses.replace(checkpoint, config=config)
    model = load(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    assert sum(buffer.numel() for buffer in model.buffers()) < 1000


def test_training_gradients_flow(tmp_path):
    make_tiny_llama(tmp_path)
    model = load(open_checkpoint(tmp_path), dtype=torch.float32, device=torch.device("cpu"))
    model.requires_grad_(True)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (2, 10))
    model(tokens_BL, torch.arange(10).expand(2, 10)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
