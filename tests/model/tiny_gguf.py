"""Tiny GGUF files, written by the `gguf` package's own writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MIDDLE, BLOCKS, VOCAB = 4, 2, 16, 64, 96, 2, 40
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

Kind = gguf.GGMLQuantizationType


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Permute rows as llama.cpp stores them: features j and j + K/2 of a head become neighbours."""
    head_dim = len(weight) // num_heads
    rows = [
        head * head_dim + half * head_dim // 2 + pair
        for head in range(num_heads)
        for pair in range(head_dim // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def llama_weights(seed: int = 0, *, is_tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not is_tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": (MIDDLE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (MIDDLE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, MIDDLE),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


_STEMS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The file's name of a Hugging Face tensor."""
    for theirs, ours in _STEMS.items():
        name = name.replace(theirs, ours)
    return name


def write_llama(
    path: Path,
    weights: Mapping[str, np.ndarray],
    *,
    kind: Kind = Kind.F32,
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    vocabulary: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Llama; `keys` replace or, where None, remove keys of the metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    metadata = {
        "llama.context_length": 256,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": BLOCKS,
        "llama.feed_forward_length": MIDDLE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
    } | dict(keys or {})
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](key, value)
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    for name, weight in weights.items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        stored = weight if heads is None else interleave(weight, heads)
        is_matrix = weight.ndim > 1
        data = quantize(stored, kind) if is_matrix else stored
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind if is_matrix else Kind.F32)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    return _finish(writer, path)


def write_vocabulary(path: Path, vocabulary: Mapping[str, Any]) -> Path:
    """Write a file that holds nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_vocabulary(writer, vocabulary)
    return _finish(writer, path)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Mapping[str, Any]) -> None:
    """Add model, tokens, kinds and, where given, pre, merges, scores, ids, flags, chat_template."""
    adders = {
        "model": writer.add_tokenizer_model,
        "pre": writer.add_tokenizer_pre,
        "tokens": writer.add_token_list,
        "kinds": writer.add_token_types,
        "merges": writer.add_token_merges,
        "scores": writer.add_token_scores,
        "chat_template": writer.add_chat_template,
    }
    for part, add in adders.items():
        if vocabulary.get(part) is not None:
            add(vocabulary[part])
    for name, token_id in vocabulary.get("ids", {}).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    for name, flag in vocabulary.get("flags", {}).items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
