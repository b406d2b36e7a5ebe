"""Shapes: the sizes of well-known models, to plan for them without their weights."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from alpage.errors import ModelNotFound
from alpage.workload import ModelShape


def named_shape(name: str) -> ModelShape:
    """Return the sizes of a model by name.

    Raises:
        ModelNotFound: none is known by that name.

    >>> named_shape("palm-540b").num_layers
    118
    """
    if name not in SHAPES:
        raise ModelNotFound(
            field="model",
            value=name,
            limit="is not the name of a model whose sizes are known",
            remedy=f"Give one of {', '.join(SHAPES)}, or the path of a config.json or checkpoint",
        )
    return SHAPES[name]


def _palm(num_layers: int, d_model: int, num_heads: int) -> ModelShape:
    """Chowdhery et al. 2022, arXiv:2204.02311, table 1."""
    return ModelShape(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=256,
        d_ff=4 * d_model,
        num_ffn_matrices=3,
        vocab_size=256_128,
        is_tied=True,
        is_parallel=True,
        num_norm_statistics=2,
    )


def _llama(
    num_layers: int, d_model: int, num_heads: int, num_kv_heads: int, d_ff: int, vocab_size: int
) -> ModelShape:
    """Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783, table 3."""
    return ModelShape(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=d_model // num_heads,
        d_ff=d_ff,
        num_ffn_matrices=3,
        vocab_size=vocab_size,
        is_tied=False,
    )


def _gpt(num_layers: int, d_model: int, num_heads: int, vocab_size: int) -> ModelShape:
    """Brown et al. 2020, arXiv:2005.14165, table 2.1; Smith et al. 2022, arXiv:2201.11990."""
    return ModelShape(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=4 * d_model,
        num_ffn_matrices=2,
        vocab_size=vocab_size,
        is_tied=True,
        num_norm_statistics=2,
    )


SHAPES: Final[Mapping[str, ModelShape]] = MappingProxyType({
    "palm-8b": _palm(32, 4096, 16),
    "palm-62b": _palm(64, 8192, 32),
    "palm-540b": _palm(118, 18_432, 48),
    "mt-nlg-530b": _gpt(105, 20_480, 128, 51_200),
    "gpt2": _gpt(12, 768, 12, 50_257),
    "gpt3-175b": _gpt(96, 12_288, 96, 50_257),
    "llama-2-7b": _llama(32, 4096, 32, 32, 11_008, 32_000),
    "llama-2-13b": _llama(40, 5120, 40, 40, 13_824, 32_000),
    "llama-2-70b": _llama(80, 8192, 64, 8, 28_672, 32_000),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14_336, 128_256),
    "llama-3-70b": _llama(80, 8192, 64, 8, 28_672, 128_256),
    "llama-3-405b": _llama(126, 16_384, 128, 8, 53_248, 128_256),
    "mixtral-8x7b": ModelShape(
        num_layers=32,
        d_model=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        d_ff=14_336,
        num_ffn_matrices=3,
        vocab_size=32_000,
        is_tied=False,
        num_experts=8,
        num_active_experts=2,
    ),
})  # fmt: skip
