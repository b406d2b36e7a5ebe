"""Rows: norms, gates, rotary turns and draws by our own kernels, in one pass over memory each.

Arithmetic is of float32 and rounded once. Dims: M rows (tokens), D features, F half of them, H
heads, K head dim.
"""

from types import ModuleType

import torch
from torch import Tensor

from alpage.native.kernels import DTYPES, import_kernels


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, *, isa: str | None = None) -> Tensor:
    """Return x / rms(x) * weight over the last dim; x is [..., D]."""
    x_MD = _rows(x)
    y_MD = torch.empty(x_MD.shape, dtype=x.dtype)
    _module().rms_norm(
        DTYPES[x.dtype],
        x_MD.data_ptr(),
        x_MD.stride(0),
        weight_D.data_ptr(),
        y_MD.data_ptr(),
        y_MD.stride(0),
        *x_MD.shape,
        eps,
        torch.get_num_threads(),
        isa,
    )
    return y_MD.view(x.shape)


def silu_mul(x: Tensor, *, isa: str | None = None) -> Tensor:
    """Return silu(gate) * up of x [..., 2F], gate and up one after the other."""
    x_M2F = _rows(x)
    num_rows, num_features = x_M2F.shape[0], x_M2F.shape[1] // 2
    y_MF = torch.empty((num_rows, num_features), dtype=x.dtype)
    _module().silu_mul(
        DTYPES[x.dtype],
        x_M2F.data_ptr(),
        x_M2F.stride(0),
        y_MF.data_ptr(),
        y_MF.stride(0),
        num_rows,
        num_features,
        torch.get_num_threads(),
        isa,
    )
    return y_MF.view(*x.shape[:-1], num_features)


def rotate(x_MHK: Tensor, turn_MK: Tensor, *, isa: str | None = None) -> Tensor:
    """Return the pairs (i, i + K / 2) of each head turned by their token's angles.

    Args:
        x_MHK: any strides, but the last dim is dense.
        turn_MK: float32: cosines, then sines.
        isa: an instruction set by name; None: the best.
    """
    assert x_MHK.stride(2) == 1
    assert turn_MK.dtype == torch.float32
    y_MHK = torch.empty(x_MHK.shape, dtype=x_MHK.dtype)
    _module().rotate(
        DTYPES[x_MHK.dtype],
        x_MHK.data_ptr(),
        *x_MHK.stride()[:2],
        turn_MK.contiguous().data_ptr(),
        y_MHK.data_ptr(),
        *y_MHK.stride()[:2],
        *x_MHK.shape,
        torch.get_num_threads(),
        isa,
    )
    return y_MHK


def draw(
    logits_RV: Tensor, temperature_R: Tensor, key_R: Tensor, *, isa: str | None = None
) -> Tensor:
    """Return tokens_R, int64: the likeliest where the temperature is 0, else drawn by probability.

    Args:
        logits_RV: the last dim is dense.
        temperature_R: float32.
        key_R: int64, see `alpage.ops.sampling.keys`.
        isa: an instruction set by name; None: the best.
    """
    num_rows, num_tokens = logits_RV.shape
    assert logits_RV.stride(1) == temperature_R.stride(0) == key_R.stride(0) == 1
    assert temperature_R.dtype == torch.float32
    assert key_R.dtype == torch.int64
    token_R = torch.empty(num_rows, dtype=torch.int64)
    _module().draw(
        DTYPES[logits_RV.dtype],
        logits_RV.data_ptr(),
        logits_RV.stride(0),
        num_rows,
        num_tokens,
        temperature_R.data_ptr(),
        key_R.data_ptr(),
        token_R.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return token_R


def log_sum_exp(logits_RV: Tensor, *, isa: str | None = None) -> Tensor:
    """Return the logarithm of the sum of exponentials of each row, float32.

    A row's bits depend on that row alone. The last dim is dense.
    """
    num_rows, num_tokens = logits_RV.shape
    assert logits_RV.stride(1) == 1
    total_R = torch.empty(num_rows)
    _module().log_sum_exp(
        DTYPES[logits_RV.dtype],
        logits_RV.data_ptr(),
        logits_RV.stride(0),
        num_rows,
        num_tokens,
        total_R.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return total_R


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _module() -> ModuleType:
    module = import_kernels()
    assert isinstance(module, ModuleType), "the caller has asked whether it is there"
    return module
