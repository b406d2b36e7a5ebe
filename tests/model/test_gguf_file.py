"""GGUF files that are whole, damaged or hostile."""

import contextlib
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpage.errors import AlpageError, BadCheckpoint, Unsupported
from alpage.models.checkpoint import open_checkpoint
from alpage.models.gguf_file import read_gguf
from alpage.models.gguf_tensor import GgufTensor
from tiny_gguf import CONTROL, NORMAL, Kind, llama_weights, write_llama

_VOCABULARY = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab", *(f"t{i}" for i in range(33))],
    "kinds": [CONTROL, CONTROL, *[NORMAL] * 38],
    "merges": ["a b", "Ġ ab"],
    "ids": {"bos": 0, "eos": 1},
    "flags": {"add_bos_token": True},
    "chat_template": "{{ messages[0]['content'] }}",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    return write_llama(path, llama_weights(), kind=Kind.Q8_0, vocabulary=_VOCABULARY)


def _use(path: Path) -> None:
    """Do with a file all that a program would."""
    checkpoint = open_checkpoint(path)
    for tensor in checkpoint.tensors.values():
        assert tuple(tensor.load().shape) == tensor.shape
    tokenizer = checkpoint.tokenizer()
    tokenizer.decode(tokenizer.encode("ab <s>", add_special_tokens=True))


def test_reads_what_the_gguf_package_reads(whole: Path) -> None:
    ours, theirs = read_gguf(whole), gguf.GGUFReader(whole)
    keys = {key for key in theirs.fields if not key.startswith("GGUF.")}
    assert set(ours.metadata) == keys
    for key in keys:
        value = ours.metadata[key]
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == theirs.fields[key].contents(), key
    assert {t.name: (tuple(t.shape[::-1].tolist()), t.tensor_type) for t in theirs.tensors} == {
        name: (tensor.shape, tensor.kind) for name, tensor in ours.tensors.items()
    }
    for tensor in theirs.tensors:
        assert np.array_equal(ours.tensors[tensor.name].raw, tensor.data.view(np.uint8).ravel())


@pytest.mark.parametrize(
    "kind",
    [k for k in Kind if k.name.startswith(("F16", "BF16", "Q", "IQ", "TQ", "MX", "NV"))],
    ids=lambda kind: kind.name,
)
def test_dequantises_each_type_as_the_gguf_package_does(kind: Kind) -> None:
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (6, 150_000 // block_size * block_size)  # several of the loader's chunks
    num_bytes = 6 * shape[1] // block_size * block_bytes
    raw = np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8)
    tensor = GgufTensor(name="x", shape=shape, kind=kind, raw=raw)
    try:
        with np.errstate(all="ignore"):
            expected = dequantize(raw.reshape(6, -1), kind)
    except NotImplementedError:
        with pytest.raises(Unsupported, match=kind.name):
            tensor.load()
    else:
        found = tensor.load()
        assert found.dtype is {"F16": torch.float16, "BF16": torch.bfloat16}.get(
            kind.name, torch.float32
        )
        assert np.array_equal(found.float().numpy(), expected, equal_nan=True)


def test_float_tensors_are_views_of_the_file_that_cannot_change_it(tmp_path: Path) -> None:
    weights = llama_weights()
    path = write_llama(tmp_path / "m.gguf", weights)
    before = path.read_bytes()
    tensor = open_checkpoint(path).tensors["model.norm.weight"]
    first, second = tensor.load(), tensor.load()
    assert first.data_ptr() == second.data_ptr()
    first.zero_()
    assert path.read_bytes() == before


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_fail_clearly_or_not_at_all(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole.read_bytes())
    # Most of the file is weights, which may be anything; the rest is where damage matters.
    num_header_bytes = len(content) - sum(
        tensor.raw.nbytes for tensor in read_gguf(whole).tensors.values()
    )
    if data.draw(st.booleans(), label="truncated"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    position = st.one_of(st.integers(0, num_header_bytes), st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 4), label="flips")):
        at = data.draw(position)
        if at < len(content):
            content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with contextlib.suppress(AlpageError):
        _use(path)


def test_no_count_or_offset_makes_the_reader_allocate(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "bomb.gguf"
    end_of_header = content.index(b"blk.0.attn_norm.weight") + 200
    tracemalloc.start()
    try:
        for at in range(8, end_of_header, 4):
            for number in (2**31 - 1, 2**40, 2**63 - 1, 2**64 - 1):
                path.write_bytes(content[:at] + struct.pack("<Q", number) + content[at + 8 :])
                with contextlib.suppress(AlpageError):
                    open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be mapped"),
        (b"GGU", "byte 0"),
        (b"PK\x03\x04" + bytes(60), "not the start of a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "bytes are needed|runs past"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "bytes are needed|runs past"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(64), "runs past the file's end"),
    ],
)
def test_broken_starts(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("version", [b"\x01\x00\x00\x00", b"\x00\x00\x00\x03"])
def test_other_versions_and_byte_orders_are_not_read(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + version + bytes(64))
    with pytest.raises(Unsupported, match="little-endian"):
        open_checkpoint(path)


def test_tensors_may_not_overlap_or_leave_the_file(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4
    for offset, message in ((0, "overlaps"), (2**40, "needs the file to have"), (8, "multiple")):
        path = tmp_path / "m.gguf"
        path.write_bytes(content[:at] + struct.pack("<Q", offset) + content[at + 8 :])
        with pytest.raises(BadCheckpoint, match=message):
            open_checkpoint(path)


def test_a_truncated_file_names_the_tensor(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match=r"ffn_down.weight.*needs the file to have"):
        open_checkpoint(path)


def test_quantisation_loses_only_what_it_must() -> None:
    values = np.random.default_rng(0).standard_normal((8, 4096), dtype=np.float32)
    raw = quantize(values, Kind.Q8_0).ravel()
    found = GgufTensor(name="x", shape=values.shape, kind=Kind.Q8_0, raw=raw).load()
    assert (found - torch.from_numpy(values)).abs().max() < 0.02
