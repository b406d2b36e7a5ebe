"""Rows: norms, gates and rotary turns: by our kernels where these serve, else by PyTorch.

Kernels are for bfloat16 on CPUs, where no gradient is wanted: PyTorch makes many passes there, and
rounds after each. Subclasses of Tensor may answer themselves, as they may for PyTorch's functions.

Dims: T tokens, D features, F half of them, H heads, K head dim.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from alpage import native


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last dim."""
    if has_torch_function_unary(x):
        return handle_torch_function(rms_norm, (x,), x, weight_D, eps)
    if _is_ours(x):
        return native.rms_norm(x, weight_D, eps)
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def silu_mul(both_T2F: Tensor) -> Tensor:
    """Return silu(gate) * up of gate and up, [..., 2, F]."""
    if has_torch_function_unary(both_T2F):
        return handle_torch_function(silu_mul, (both_T2F,), both_T2F)
    if _is_ours(both_T2F):
        return native.silu_mul(both_T2F.flatten(-2))
    gate_TF, up_TF = both_T2F.unbind(-2)
    return F.silu(gate_TF) * up_TF


def rotate(x_THK: Tensor, turn_TK: Tensor) -> Tensor:
    """Turn feature pairs (i, i + K / 2) by their token's angles: cosines, then sines, float32."""
    if has_torch_function_unary(x_THK):
        return handle_torch_function(rotate, (x_THK,), x_THK, turn_TK)
    if x_THK.dim() == 3 and _is_ours(x_THK):
        return native.rotate(x_THK, turn_TK)
    cos_T1J, sin_T1J = turn_TK[..., None, :].to(x_THK.dtype).chunk(2, dim=-1)
    one_THJ, other_THJ = x_THK.chunk(2, dim=-1)
    return torch.cat(
        (one_THJ * cos_T1J - other_THJ * sin_T1J, other_THJ * cos_T1J + one_THJ * sin_T1J), dim=-1
    )


def _is_ours(x: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and _has_kernels()
    )


@cache
def _has_kernels() -> bool:
    return native.load() is not None
