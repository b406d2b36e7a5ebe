"""GGUF models in the terms of Hugging Face."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alpage.errors import AlpageError, BadCheckpoint, Unsupported
from alpage.models.checkpoint import open_checkpoint
from tiny_gguf import (
    BLOCKS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    MIDDLE,
    VOCAB,
    Kind,
    llama_weights,
    write_llama,
)


@pytest.mark.parametrize("is_tied", [True, False])
def test_tensors_equal_hugging_faces(tmp_path: Path, is_tied: bool) -> None:
    weights = llama_weights(is_tied=is_tied)
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", weights))
    assert checkpoint.config["tie_word_embeddings"] is is_tied
    assert set(checkpoint.tensors) == set(weights)
    for name, weight in weights.items():
        tensor = checkpoint.tensors[name]
        assert (tensor.shape, tensor.dtype_name) == (weight.shape, "F32")
        assert torch.equal(tensor.load(), torch.from_numpy(weight)), name


def test_quantised_queries_and_keys_are_reordered_too(tmp_path: Path) -> None:
    weights = llama_weights()
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", weights, kind=Kind.Q8_0))
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{part}.weight"
        error = checkpoint.tensors[name].load() - torch.from_numpy(weights[name])
        assert checkpoint.tensors[name].dtype_name == "Q8_0"
        assert error.abs().max() < 0.03, name


def test_config_is_hugging_faces(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", llama_weights()))
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def test_linear_and_yarn_scaling(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.5,
        "llama.rope.scaling.original_context_length": 64,
    }
    path = tmp_path / "m.gguf"
    write_llama(path, llama_weights(), keys=linear)
    assert open_checkpoint(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    write_llama(path, llama_weights(), keys=yarn)
    assert open_checkpoint(path).config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 2.5,
        "original_max_position_embeddings": 64,
    }


def test_llama3_factors_reach_the_config(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    path = write_llama(tmp_path / "m.gguf", llama_weights(), extra={"rope_freqs.weight": factors})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "factors",
        "factors": factors.tolist(),
    }
    assert not any("rope" in name for name in checkpoint.tensors)


@pytest.mark.parametrize(
    "factors", [np.ones(3), np.zeros(HEAD_DIM // 2), np.full(HEAD_DIM // 2, np.nan)]
)
def test_absurd_factors(tmp_path: Path, factors: np.ndarray) -> None:
    extra = {"rope_freqs.weight": factors.astype(np.float32)}
    path = write_llama(tmp_path / "m.gguf", llama_weights(), extra=extra)
    with pytest.raises(BadCheckpoint, match=r"rope_freqs.weight.*positive numbers"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("llama.block_count", None, BadCheckpoint, "positive whole number"),
        ("llama.block_count", 0, BadCheckpoint, "positive whole number"),
        ("llama.block_count", 4_000_000_000, BadCheckpoint, "positive whole number"),
        ("llama.block_count", 1000, BadCheckpoint, "block 999 has no tensors"),
        ("llama.attention.head_count", "four", BadCheckpoint, "must be of type int"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), BadCheckpoint, "positive number"),
        ("llama.rope.freq_base", float("inf"), BadCheckpoint, "positive number"),
        ("llama.rope.dimension_count", HEAD_DIM // 2, Unsupported, "cannot|not something"),
        ("llama.rope.scaling.type", "longrope", Unsupported, "rope.scaling.type='longrope'"),
        ("llama.expert_count", 8, Unsupported, "llama.expert_count=8"),
        ("tokenizer.ggml.eos_token_id", VOCAB, BadCheckpoint, "not a token"),
    ],
)
def test_bad_metadata_is_named(
    tmp_path: Path, key: str, value: Any, error: type[AlpageError], message: str
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama_weights(), keys={key: value})
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert key in caught.value.field


def test_other_architectures_and_tensors_are_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_llama(path, llama_weights(), extra={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(Unsupported, match=r"attn_sinks.*has no place"):
        open_checkpoint(path)
    write_llama(path, llama_weights(), keys={"llama.block_count": None})
    path.write_bytes(
        path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba")
    )
    with pytest.raises(Unsupported, match=r"general.architecture='mamba'"):
        open_checkpoint(path)


def test_all_ends_of_generation_count(tmp_path: Path) -> None:
    keys = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("eos", "eot", "eom"), 5)}
    path = write_llama(tmp_path / "m.gguf", llama_weights(), keys=keys)
    assert open_checkpoint(path).eos_ids == {5, 6, 7}
