"""Tensor file: tensors in one file that is mapped into memory, and that shows when it is damaged.

It is of the form of safetensors (https://github.com/huggingface/safetensors), with tensors at
multiples of 64 bytes and, past them, the header's SHA-256. The header has a sum of each tensor's
bytes, in words of 8: what a crash or a bad disk leaves is found in the time of one read of memory,
where a hash takes five to twenty times as long. It is no protection from someone who writes the
file on purpose.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT, _WORD = 64, 8
_LENGTH = struct.Struct("<Q")
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors, one at a time, and texts that belong to them.

    Raises:
        OSError: the file cannot take them.
    """
    header: dict[str, Any] = {}
    sums: dict[str, int] = {}
    end = 0
    for name, tensor in tensors.items():
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [end, end + tensor.nbytes]}
        sums[name] = _sum(_bytes(tensor))
        end += tensor.nbytes
        if padding := -end % _ALIGNMENT:
            header[f"padding.{end}"] = _entry(end, padding)
            end += padding
    header["digest"] = _entry(end, hashlib.sha256().digest_size)
    header["__metadata__"] = dict(facts) | {"sums": json.dumps(sums)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(_LENGTH.size + len(encoded)) % _ALIGNMENT)
    file.write(_LENGTH.pack(len(encoded)) + encoded)
    for tensor in tensors.values():
        file.write(_bytes(tensor).data)
        file.write(bytes(-tensor.nbytes % _ALIGNMENT))
    file.write(hashlib.sha256(encoded).digest())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return what was written, the tensors as private views of the file; None: it is not whole."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        (length,) = _LENGTH.unpack_from(data)
    except (OSError, ValueError, struct.error):
        return None
    start = _LENGTH.size + length
    digest = hashlib.sha256(data[_LENGTH.size : start])
    if data[-digest.digest_size :] != digest.digest():
        return None
    # From here on the header is one of ours.
    header = json.loads(data[_LENGTH.size : start])
    facts = header.pop("__metadata__")
    tensors: dict[str, Tensor] = {}
    for name, expected in json.loads(facts.pop("sums")).items():
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        if _sum(np.frombuffer(data, np.uint8, end - begin, begin)) != expected:
            return None
        tensors[name] = _tensor(data, begin, header[name])
    return tensors, facts


def _tensor(data: mmap.mmap, begin: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = int(np.prod(shape))
    return torch.frombuffer(data, dtype=dtype, count=size, offset=begin).view(shape)


def _entry(start: int, num_bytes: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [num_bytes], "data_offsets": [start, start + num_bytes]}


def _bytes(tensor: Tensor) -> _Bytes:
    raw: _Bytes = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return raw


def _sum(raw: _Bytes) -> int:
    """Return the sum of the words, modulo 2**64; the last word ends in zeros."""
    num_whole = len(raw) // _WORD * _WORD
    rest = int.from_bytes(raw[num_whole:].tobytes(), "little")
    return (int(raw[:num_whole].view(np.uint64).sum()) + rest) % 2**64
