"""Ceilings: how fast a device multiplies matrices and reads memory at best, measured.

These are the two roofs of the roofline model (Williams et al. 2009, CACM 52(4)).

Dims: M, K, N of a matrix product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F

from alpage import native
from alpage.units import MiB

# Large enough that launch and packing do not count, small enough for several repeats a second.
_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
# Far above any cache: those of today's GPUs are below 100 MiB, those of a CPU socket below 400.
_BUFFER_BYTES = {"cpu": 512 * MiB, "cuda": 1024 * MiB}
_BUDGET_S = 0.5
_MIN_REPEATS = 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The best that a device reached.

    Attributes:
        matmul_flops_per_s: in one matrix product; a multiplication and an addition are two.
        memory_bytes_per_s: reading a buffer once.
    """

    matmul_flops_per_s: float
    memory_bytes_per_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Something to do again and again, and how much of it is done each time.

    Attributes:
        run: does it once; on a GPU it may return before it is done.
        amount: operations or bytes.
    """

    run: Callable[[], object]
    amount: int


def matmul_load(device: torch.device, dtype: torch.dtype) -> Load:
    """Return a square matrix product, and its operations."""
    size = _MATRIX_SIZE[device.type]
    x_MK = torch.randn(size, size, device=device).to(dtype)
    w_NK = torch.randn(size, size, device=device).to(dtype)
    return Load(run=lambda: F.linear(x_MK, w_NK), amount=2 * size**3)


def int8_load(device: torch.device, dtype: torch.dtype) -> Load:
    """Return the product of a matrix in 8 bits, by our kernels where these serve."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not native.has_linear("int8"):
        return matmul_load(device, dtype)
    size = _MATRIX_SIZE[device.type]
    x_MK = torch.randn(size, size, device=device).to(dtype)
    w_NK = torch.randint(-127, 128, (size, size), device=device).to(torch.int8)
    weight = native.pack_int8(w_NK, torch.ones(size))
    return Load(run=lambda: native.linear(x_MK, weight), amount=2 * size**3)


def read_load(device: torch.device, *, num_readers: int = 1) -> Load:
    """Return the read of a buffer, and its bytes.

    Args:
        device: whose memory it is.
        num_readers: that read buffers of the same memory at once, and leave each other's alone: all
            of them together are what no cache holds.
    """
    num_bytes = _BUFFER_BYTES[device.type] // num_readers
    buffer = torch.ones(num_bytes // torch.float32.itemsize, device=device)
    # A sum is bound by memory on every device, and PyTorch splits it over all threads.
    return Load(run=buffer.sum, amount=buffer.nbytes)


@torch.inference_mode()
def measure_ceilings(
    device: torch.device, dtype: torch.dtype, quantization: str | None = None
) -> Ceilings:
    """Return the best of what about a second shows, with as many threads as PyTorch uses.

    Args:
        device: that is measured.
        dtype: of activations, and of weights that are not quantized.
        quantization: "int8" or "int4", which both multiply in 8 bits, or None.
    """
    load = matmul_load if quantization is None else int8_load
    return Ceilings(
        matmul_flops_per_s=_best_per_s(load(device, dtype), device),
        memory_bytes_per_s=_best_per_s(read_load(device), device),
    )


def _best_per_s(load: Load, device: torch.device) -> float:
    """Return the amount a second of the shortest run, after one run to warm up."""
    _timed_s(load, device)
    times_s: list[float] = []
    while len(times_s) < _MIN_REPEATS or sum(times_s) < _BUDGET_S:
        times_s.append(_timed_s(load, device))
    return load.amount / min(times_s)


def _timed_s(load: Load, device: torch.device) -> float:
    start_s = time.perf_counter()
    load.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_s
