"""RoPE: rotary positions (Su et al. 2021, arXiv:2104.09864), and the ways to stretch them.

A pair of features (j, j + K/2) of a head turns by position * frequency_j, with
frequency_j = theta^(-2j/K). Longer contexts than trained for divide some frequencies:

    linear    all by `factor` (Chen et al. 2023, arXiv:2306.15595)
    llama3    the slow ones by `factor`, the fast ones not, a ramp between (Llama 3 herd of models,
              arXiv:2407.21783)
    yarn      a ramp over feature pairs, and queries and keys scaled (Peng et al. 2023,
              arXiv:2309.00071)
    factors   each by its own factor, as GGUF files of Llama 3 store them

The frequencies are made on the CPU even while a model is built on the meta device: they are no
weights.

Dims: T tokens (any leading dims), H heads, K head dim, J = K / 2 feature pairs.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alpage.errors import BadCheckpoint, Unsupported


def frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any], max_positions: int
) -> tuple[Tensor, float]:
    """Return frequency_J in float32, and the factor on cosines and sines.

    Args:
        head_dim: K.
        theta: base of the frequencies.
        scaling: `rope_scaling` of a Hugging Face config; empty for none.
        max_positions: the model's own limit, for scalings that do not name the trained length.

    Raises:
        Unsupported: the kind of scaling is not known.
        BadCheckpoint: a number that the kind needs is missing or out of its range.
    """
    frequency_J = theta ** -(
        torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "factors", "llama3", "yarn"):
        raise Unsupported(
            field="rope_scaling",
            value=kind,
            limit="must be one of default, linear, llama3, yarn",
            remedy="Use a checkpoint with one of these, or without rope_scaling",
        )
    try:
        scaled_J, factor = _scaled(kind, frequency_J, theta, scaling, max_positions)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise _bad(kind, scaling) from error
    if not (scaled_J.isfinite() & (scaled_J > 0)).all() or not math.isfinite(factor):
        raise _bad(kind, scaling)
    return scaled_J, factor


def _bad(kind: str, scaling: Mapping[str, Any]) -> BadCheckpoint:
    return BadCheckpoint(
        field="rope_scaling",
        value=dict(scaling),
        limit=f"lacks a number that a scaling of type {kind} needs, or has one out of its range",
        remedy="Mend the model's config.json",
    )


def _scaled(
    kind: str, frequency_J: Tensor, theta: float, scaling: Mapping[str, Any], max_positions: int
) -> tuple[Tensor, float]:
    if kind == "linear":
        return frequency_J / scaling["factor"], 1.0
    if kind == "factors":
        factor_J = torch.tensor(scaling["factors"], dtype=torch.float32, device="cpu")
        return frequency_J / factor_J.view(len(frequency_J)), 1.0
    if kind == "llama3":
        return _llama3(frequency_J, scaling), 1.0
    if kind == "yarn":
        return _yarn(frequency_J, theta, scaling, max_positions)
    return frequency_J, 1.0


def _llama3(frequency_J: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    trained = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns_J = trained * frequency_J / (2 * math.pi)
    keep_J = ((turns_J - low) / (high - low)).clamp(0, 1)
    kept_J: Tensor = keep_J + (1 - keep_J) / scaling["factor"]
    return frequency_J * kept_J


def _yarn(
    frequency_J: Tensor, theta: float, scaling: Mapping[str, Any], max_positions: int
) -> tuple[Tensor, float]:
    trained = scaling.get("original_max_position_embeddings") or max_positions
    factor = scaling["factor"]
    head_dim = 2 * len(frequency_J)

    def pair_with_turns(turns: float) -> float:
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_with_turns(scaling.get("beta_fast") or 32)
    last = pair_with_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp_J = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    ramp_J = ((ramp_J - first) / max(last - first, 0.001)).clamp(0, 1)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(factor, scaling)
    return frequency_J * (1 - ramp_J + ramp_J / factor), float(attention_factor)


def _yarn_attention_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
    return scale(1.0)


def turns(positions_T: Tensor, frequency_J: Tensor, factor: float) -> Tensor:
    """Return turn_TK: cosines then sines of every pair's angle at each position, float32."""
    assert frequency_J.dtype == torch.float32, "rounded frequencies turn far positions wrongly"
    angle_TJ = positions_T[..., None] * frequency_J
    return torch.cat((angle_TJ.cos(), angle_TJ.sin()), dim=-1) * factor
