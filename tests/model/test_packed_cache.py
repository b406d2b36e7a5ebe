"""Models kept on disk as they lie in memory: the same bits, and never a reason to fail."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from alpage import LLM, SamplingParams, native
from alpage.errors import InvalidValue
from alpage.models import catalogue, load, open_checkpoint
from alpage.models.packed_cache import FORM
from alpage.models.tensor_file import read_tensors
from alpage.serve.sizing import size
from tiny_gguf import Kind, llama_weights, write_llama
from tiny_llama import make_tiny_llama

CPU = torch.device("cpu")
TOKENS_BL, POSITIONS_BL = torch.arange(24).view(2, 12), torch.arange(12).expand(2, 12)
needs_kernels = pytest.mark.skipif(
    not native.has_linear("int4"), reason="the kernels for linear layers are not for this machine"
)


@pytest.fixture
def model(tmp_path):
    return write_llama(tmp_path / "m.gguf", llama_weights(), kind=Kind.Q4_1)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "packed"


def load_logits(path, cache, quantization=None, dtype=torch.bfloat16):
    checkpoint = open_checkpoint(path)
    model = load(checkpoint, dtype=dtype, device=CPU, quantization=quantization, cache=cache)
    assert not model.training
    assert model.quantization == quantization
    return model(TOKENS_BL, POSITIONS_BL), model.num_mapped_bytes > 0


def entries(cache):
    return sorted(cache.glob("*.safetensors"))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        (torch.bfloat16, None),
        (torch.bfloat16, "int8"),
        pytest.param(torch.bfloat16, "int4", marks=needs_kernels),
        (torch.float32, None),
        (torch.float32, "int8"),
    ],
)
def test_same_bits(tmp_path, cache, dtype, quantization, is_tied):
    weights = llama_weights(is_tied=is_tied)
    path = write_llama(tmp_path / "m.gguf", weights, kind=Kind.Q4_1)
    expected, _ = load_logits(path, None, quantization, dtype)
    for is_kept in (False, True):
        found, is_mapped = load_logits(path, cache, quantization, dtype)
        assert is_mapped is is_kept
        assert torch.equal(found, expected)
    assert len(entries(cache)) == 1


def test_directories_with_biases(tmp_path, cache):
    make_tiny_llama(tmp_path, attention_bias=True, mlp_bias=True)
    expected, _ = load_logits(tmp_path, None)
    load_logits(tmp_path, cache)
    found, is_mapped = load_logits(tmp_path, cache)
    assert is_mapped
    assert torch.equal(found, expected)


def test_what_differs_is_kept_apart(model, cache):
    for quantization in (None, "int8"):
        for dtype in (torch.bfloat16, torch.float32):
            assert not load_logits(model, cache, quantization, dtype)[1]
    assert len(entries(cache)) == 4


def test_entry_is_a_safetensors_file_that_begins_at_whole_lines(model, cache):
    load_logits(model, cache)
    (entry,) = entries(cache)
    tensors, _ = read_tensors(entry)
    with safe_open(entry, framework="pt") as opened:
        assert all(torch.equal(opened.get_tensor(name), one) for name, one in tensors.items())
    starts = [one.data_ptr() for one in tensors.values() if one.nbytes]
    assert len(starts) > 10
    assert all(start % 64 == 0 for start in starts)


# -- changed checkpoints ---------------------------------------------------------------------------


def test_moved_checkpoint_is_the_same(tmp_path, cache):
    (tmp_path / "here").mkdir()
    write_llama(tmp_path / "here" / "m.gguf", llama_weights(), kind=Kind.Q4_1)
    load_logits(tmp_path / "here" / "m.gguf", cache)
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_logits(tmp_path / "there" / "m.gguf", cache)[1]


def test_changed_checkpoint_is_another_even_with_its_old_time(model, cache):
    old, _ = load_logits(model, cache)
    status = model.stat()
    write_llama(model, llama_weights(1), kind=Kind.Q4_1)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model.stat().st_size == status.st_size
    found, is_mapped = load_logits(model, cache)
    assert not is_mapped
    assert not torch.equal(found, old)
    assert torch.equal(found, load_logits(model, None)[0])


def test_changed_config_is_another(tmp_path, cache):
    make_tiny_llama(tmp_path)
    load_logits(tmp_path, cache)
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert not load_logits(tmp_path, cache)[1]


def test_checkpoint_that_changed_while_it_was_open_is_not_kept(model, cache):
    checkpoint = open_checkpoint(model)
    os.utime(model)
    load(checkpoint, dtype=torch.bfloat16, device=CPU, cache=cache)
    assert not cache.exists()


# -- damage ----------------------------------------------------------------------------------------


def cut(content):
    return content[:-100]


def cut_to_nothing(content):
    return b""


def cut_in_the_length(content):
    return content[:5]


def lengthen(content):
    return content + bytes(64)


def flip_in_the_header(content):
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


def flip_in_the_middle(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def lose_a_page(content):
    place = len(content) // 2 // 4096 * 4096
    return content[:place] + bytes(4096) + content[place + 4096 :]


def claim_a_long_header(content):
    return b"\xff" * 8 + content[8:]


def be_something_else(content):
    return b"GGUF" * 1000


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        cut_to_nothing,
        cut_in_the_length,
        lengthen,
        flip_in_the_header,
        flip_in_the_middle,
        lose_a_page,
        claim_a_long_header,
        be_something_else,
    ],
)
def test_damage_is_seen_and_mended(model, cache, damage):
    expected, _ = load_logits(model, cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    entry.unlink()
    entry.write_bytes(damage(whole))
    found, is_mapped = load_logits(model, cache)
    assert not is_mapped
    assert torch.equal(found, expected)
    assert entry.read_bytes() == whole
    assert load_logits(model, cache)[1]


def test_entry_of_another_checkpoint_is_not_taken(tmp_path, model, cache):
    other = write_llama(tmp_path / "other.gguf", llama_weights(1), kind=Kind.Q4_1)
    load_logits(model, cache)
    (own,) = entries(cache)
    load_logits(other, cache)
    (theirs,) = set(entries(cache)) - {own}
    own.write_bytes(theirs.read_bytes())
    found, is_mapped = load_logits(model, cache)
    assert not is_mapped
    assert torch.equal(found, load_logits(model, None)[0])


# -- disks -----------------------------------------------------------------------------------------


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name", ["tempfile.NamedTemporaryFile", "Path.replace", "shutil.disk_usage"]
)
def test_disk_that_takes_nothing_is_no_failure(model, cache, monkeypatch, name):
    monkeypatch.setattr(f"alpage.models.packed_cache.{name}", refuse)
    load_logits(model, cache)
    assert not list(cache.iterdir())


def test_disk_that_fills_up_leaves_nothing_behind(model, cache, monkeypatch):
    def write_some(file, tensors, facts):
        file.write(b"some")
        refuse()

    monkeypatch.setattr("alpage.models.packed_cache.write_tensors", write_some)
    load_logits(model, cache)
    assert not list(cache.iterdir())


def test_place_that_cannot_be_a_directory_is_no_failure(tmp_path, model):
    (tmp_path / "file").write_bytes(b"")
    load_logits(model, tmp_path / "file")
    load_logits(model, tmp_path / "file" / "packed")


def test_entry_is_read_where_nothing_can_be_written(model, cache, monkeypatch):
    load_logits(model, cache)
    monkeypatch.setattr("os.utime", refuse)
    cache.chmod(0o500)
    assert load_logits(model, cache)[1]
    cache.chmod(0o700)


def test_nothing_is_kept_on_a_disk_without_room_for_it_twice(model, cache, monkeypatch):
    load_logits(model, cache)
    (entry,) = entries(cache)
    num_bytes = entry.stat().st_size
    entry.unlink()
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(num_bytes))
    load_logits(model, cache)
    assert not entries(cache)


# -- room ------------------------------------------------------------------------------------------


def test_those_used_last_stay(tmp_path, cache, monkeypatch):
    paths = [
        write_llama(tmp_path / f"{seed}.gguf", llama_weights(seed), kind=Kind.Q4_1)
        for seed in range(3)
    ]
    load_logits(paths[0], cache)
    (first,) = entries(cache)
    os.utime(first, (1, 1))
    load_logits(paths[1], cache)
    (second,) = set(entries(cache)) - {first}
    os.utime(second, (2, 2))
    num_bytes = int(2.5 * first.stat().st_size)
    monkeypatch.setattr("alpage.models.packed_cache.MAX_BYTES", num_bytes)
    assert load_logits(paths[0], cache)[1]
    load_logits(paths[2], cache)
    assert first in entries(cache)
    assert second not in entries(cache)
    assert len(entries(cache)) == 2


def test_larger_ones_than_all_may_be_are_not_kept(model, cache, monkeypatch):
    monkeypatch.setattr("alpage.models.packed_cache.MAX_BYTES", 1000)
    load_logits(model, cache)
    assert not entries(cache)


def test_what_killed_processes_left_is_removed(model, cache):
    cache.mkdir()
    old, new, other = (cache / name for name in ("a.part", "b.part", "notes.txt"))
    for path in (old, new, other):
        path.write_bytes(b"some")
    for path in (old, other):
        os.utime(path, (1, 1))
    load_logits(model, cache)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


# -- processes and engines -------------------------------------------------------------------------

LOADER = """
import sys, time, torch
from pathlib import Path
from alpage.models import load, open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
cache = Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    for path in cache.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    model = load(checkpoint, dtype=torch.bfloat16, device=torch.device("cpu"), cache=cache)
    tokens = torch.arange(24).view(2, 12)
    print(model(tokens, torch.arange(12).expand(2, 12)).double().sum().item())
"""


def test_processes_that_start_at_once(model, cache):
    expected, _ = load_logits(model, None)
    command = [sys.executable, "-c", LOADER, str(model), str(cache)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert {float(line) for line in out.split()} == {expected.double().sum().item()}
    assert len(list(cache.iterdir())) <= 1
    load_logits(model, cache)
    assert load_logits(model, cache)[1]


def test_engine_keeps_its_model_where_it_is_told_to(tmp_path, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"kv_memory": "4MiB", "device": "cpu", "dtype": "bfloat16"}
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    directory = catalogue.default_packed_cache()
    assert directory == tmp_path / "alpage" / "packed"
    plain = LLM(model, has_weight_cache=False, **settings)
    assert not directory.exists()
    LLM(model, **settings)
    assert len(list(directory.iterdir())) == 1
    kept = LLM(model, **settings)
    texts = [llm.generate([[3, 4]], params)[0].outputs[0].token_ids for llm in (plain, kept)]
    assert texts[0] == texts[1]
    assert kept.engine.runner.views[0].model.num_mapped_bytes > 0


def test_memory_of_a_mapped_model_does_not_pass_for_free(model, monkeypatch):
    found = []

    def sized(*args, **kwargs):
        found.append(kwargs["free_bytes"])
        return size(*args, **kwargs)

    monkeypatch.setattr("alpage.serve.build.free_bytes", lambda _: 2**24)
    monkeypatch.setattr("alpage.serve.build.size", sized)
    LLM(model, device="cpu", dtype="bfloat16")
    kept = LLM(model, device="cpu", dtype="bfloat16").engine.runner.views[0].model
    assert found == [2**24, 2**24 - kept.num_mapped_bytes]
    assert kept.num_mapped_bytes >= 2 * kept.shape.num_parameters


def test_user_without_a_home_keeps_nothing(model, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InvalidValue):
        catalogue.default_packed_cache()
    llm = LLM(model, kv_memory="4MiB", device="cpu")
    assert llm.engine.runner.views[0].model.num_mapped_bytes == 0


# -- form ------------------------------------------------------------------------------------------

# Whoever changes what layers hold raises FORM, so that nobody's old entries are read as new ones.
FORMS = {
    2: {None: "3f5fbc138757d244", "int8": "ca2aab5dc029e463", "int4": "d3b68cae6b7c0679"},
}


@needs_kernels
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_form_has_a_number_of_its_own(model, cache, quantization):
    load_logits(model, cache, quantization)
    tensors, facts = read_tensors(entries(cache)[0])
    digest = hashlib.sha256(facts["packings"].encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    assert digest.hexdigest()[:16] == FORMS[FORM][quantization]
