"""Machine: the device and dtype that a config means here, and how much memory is free."""

import torch

from alpage.errors import Unsupported
from alpage.hardware import available_memory_bytes, cpu_features, has_bf16_compute
from alpage.ops.linear import is_packable

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def find_device(name: str) -> torch.device:
    """Return the device of a name: auto is a GPU if there is one.

    Raises:
        Unsupported: it is a GPU that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise Unsupported(
            field="device",
            value=name,
            limit=f"PyTorch sees {torch.cuda.device_count()} CUDA devices here",
            remedy='Use device="cpu", or install PyTorch for your GPU',
        )
    return torch.device(name)


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name: auto is bfloat16 where it is as fast as float32, or faster."""
    if name == "auto":
        is_fast = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else has_bf16_compute(cpu_features())
            or is_packable(torch.empty(0, dtype=torch.bfloat16))
        )
        return torch.bfloat16 if is_fast else torch.float32
    return _DTYPES[name]


def find_kv_dtype(name: str | None, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of keys and values: the model's, or int8.

    Raises:
        Unsupported: it is int8 on a GPU.
    """
    if name is None:
        return dtype
    if device.type != "cpu":
        raise Unsupported(
            field="kv_dtype",
            value=name,
            limit=f"is for CPUs so far, not for {device.type}",
            remedy='Use device="cpu", or leave it out',
        )
    return torch.int8


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()
