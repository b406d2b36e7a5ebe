"""Checkpoints from Hugging Face directories, and what cannot be one."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alpage.errors import AlpageError, BadCheckpoint, ModelNotFound, OutOfMemory, Unsupported
from alpage.models import huggingface_directory
from alpage.models.checkpoint import open_checkpoint

_CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    eos_token_id=2,
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(_CONFIG).to(torch.bfloat16)


@pytest.fixture(scope="module")
def saved(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _shard(model: LlamaForCausalLM, directory: Path) -> Path:
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="3KB")
    return directory / "model.safetensors.index.json"


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_tensors_equal_what_was_saved(
    model: LlamaForCausalLM, directory: Path, is_sharded: bool
) -> None:
    if is_sharded:
        _shard(model, directory)
        assert len(list(directory.glob("*.safetensors"))) > 2
    checkpoint = open_checkpoint(directory)
    state = model.state_dict()
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        stored = checkpoint.tensors[name]
        assert (stored.shape, stored.dtype_name) == (tuple(tensor.shape), "BF16")
        assert torch.equal(stored.load(), tensor)
    assert checkpoint.config["hidden_size"] == 16


def test_ends_of_generation_are_merged(directory: Path) -> None:
    _edit(directory / "generation_config.json", lambda c: c.update(eos_token_id=[7, 8]))
    assert open_checkpoint(directory).eos_ids == {2, 7, 8}
    _edit(directory / "generation_config.json", lambda c: c.update(eos_token_id="</s>"))
    with pytest.raises(BadCheckpoint, match="eos_token_id"):
        open_checkpoint(directory)


def test_weights_load_without_a_tokenizer_which_is_missed_when_needed(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    checkpoint.tensors["model.norm.weight"].load()
    with pytest.raises(BadCheckpoint, match=r"tokenizer.json.*is missing"):
        checkpoint.tokenizer()


def _add_tokenizer(
    directory: Path, config: dict[str, Any], *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "a", "b", "ab", "</s"])}
    backend = tokenizers.Tokenizer(models.BPE(ids, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    backend.enable_truncation(4)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    )
    return PreTrainedTokenizerFast.from_pretrained(directory)


_BOTH = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}


@pytest.mark.parametrize("config", [{}, _BOTH, _BOTH | {"add_bos_token": True}])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_tokenizer_files_mean_what_transformers_makes_of_them(
    directory: Path, config: dict[str, Any], adds_bos: bool
) -> None:
    theirs = _add_tokenizer(directory, config, adds_bos=adds_bos)
    checkpoint = open_checkpoint(directory)
    ours = checkpoint.tokenizer()
    assert checkpoint.tokenizer() is ours
    for text in ("", "ab a b", "a</s>b c", "a b a b a b"):
        for adds in (True, False):
            expected = theirs.encode(text, add_special_tokens=adds)
            assert ours.encode(text, add_special_tokens=adds) == expected
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.eos_ids == {2}
    assert ours.vocab_size == len(theirs)
    assert ours.chat_template is None
    with pytest.raises(Unsupported, match="no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)


def test_where_chat_templates_are_found(directory: Path) -> None:
    named = [{"name": "default", "template": "list"}, {"name": "rag", "template": "other"}]
    for stored, expected in (("text", "text"), (named, "list"), (None, None)):
        _add_tokenizer(directory, {"chat_template": stored})
        assert open_checkpoint(directory).tokenizer().chat_template == expected
    (directory / "chat_template.jinja").write_text("file {{ bos_token }}")
    _add_tokenizer(directory, {"chat_template": "text", "bos_token": "<s>"})
    ours = open_checkpoint(directory).tokenizer()
    messages = [{"role": "user", "content": "a"}]
    assert ours.apply_chat_template(messages, add_generation_prompt=True) == "file <s>"


def test_ids_and_texts_out_of_range(directory: Path) -> None:
    _add_tokenizer(directory, {})
    ours = open_checkpoint(directory).tokenizer()
    for ids in ([-1], [2**40]):
        with pytest.raises(AlpageError, match="token_ids"):
            ours.decode(ids)
    assert ours.decode([3, 10_000]) == "a"
    assert (ours.id_to_token(10_000), ours.token_bytes(10_000)) == (None, b"")
    with pytest.raises(AlpageError, match="UTF-8"):
        ours.encode("\ud800", add_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json.*is no tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json.*not UTF-8"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json.*must hold an object"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json.*not valid JSON"),
        ("tokenizer_config.json", '{"bos_token": "<x>"}', "bos_token='<x>'.*not in the vocabulary"),
        ("tokenizer_config.json", '{"bos_token": 1}', "bos_token as 1"),
        ("tokenizer_config.json", '{"chat_template": {"a": 1}}', "chat_template"),
    ],
)
def test_broken_tokenizer_files(
    directory: Path, name: str, content: str | bytes, message: str
) -> None:
    _add_tokenizer(directory, {})
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(directory).tokenizer()


def test_a_tensor_that_no_model_computes_with(directory: Path) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.int64)}, directory / "model.safetensors")
    tensor = open_checkpoint(directory).tensors["w"]
    with pytest.raises(Unsupported, match=r"model.safetensors: w='I64'"):
        tensor.load()


@pytest.mark.parametrize("num_bytes", [0, 7, 100, -1])
def test_truncated_weights(directory: Path, num_bytes: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(BadCheckpoint, match=r"model.safetensors=.*truncated or corrupt"):
        open_checkpoint(directory)


def test_a_header_of_absurd_size(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(BadCheckpoint, match="truncated or corrupt"):
        open_checkpoint(directory)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 2500), byte=st.integers(0, 255))
def test_damaged_weights_fail_clearly_or_not_at_all(
    saved: Path, directory: Path, at: int, byte: int
) -> None:
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[at] = byte
    (directory / "model.safetensors").write_bytes(content)
    try:
        for tensor in open_checkpoint(directory).tensors.values():
            tensor.load()
    except AlpageError:
        pass


@pytest.mark.parametrize(
    "shard", ["../model-1.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", 3]
)
def test_an_index_cannot_point_outside(
    model: LlamaForCausalLM, directory: Path, shard: str | int
) -> None:
    index = _shard(model, directory)
    _edit(index, lambda content: content["weight_map"].update({"lm_head.weight": shard}))
    with pytest.raises(BadCheckpoint, match=r"lm_head.weight.*no .safetensors file beside it"):
        open_checkpoint(directory)


def test_an_index_that_contradicts_its_shards(model: LlamaForCausalLM, directory: Path) -> None:
    index = _shard(model, directory)
    shard = json.loads(index.read_text())["weight_map"]["model.norm.weight"]
    _edit(index, lambda content: content["weight_map"].update({"extra.weight": shard}))
    with pytest.raises(BadCheckpoint, match=rf"{shard}: extra.weight"):
        open_checkpoint(directory)
    (directory / shard).unlink()
    with pytest.raises(BadCheckpoint, match=rf"{shard}=.*is missing"):
        open_checkpoint(directory)
    index.write_text("{}")
    with pytest.raises(BadCheckpoint, match="weight_map"):
        open_checkpoint(directory)


def test_pickles_are_refused_and_never_opened(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    for path in (directory, directory / "pytorch_model.bin"):
        with pytest.raises(Unsupported, match=r"is a pickle.*[Cc]onvert"):
            open_checkpoint(path)


def test_code_in_a_directory_is_not_run(directory: Path) -> None:
    marker = directory / "was_run"
    (directory / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')")
    _edit(
        directory / "config.json",
        lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling_x.Model"}),
    )
    _add_tokenizer(directory, {})
    open_checkpoint(directory).tokenizer()
    assert not marker.exists()


def test_quantised_safetensors_are_refused(directory: Path) -> None:
    _edit(directory / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    with pytest.raises(Unsupported, match="quantization_config"):
        open_checkpoint(directory)


def test_files_that_cannot_be_mapped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_directory, "safe_open", Mock(side_effect=MemoryError))
    with pytest.raises(OutOfMemory, match="may map"):
        open_checkpoint(directory)


def test_what_is_no_model(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file or directory"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("x" * 300))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelNotFound, match=r"neither a model's directory nor a .gguf file"):
        open_checkpoint(tmp_path / "notes.txt")
    (directory / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"holds neither model.safetensors nor"):
        open_checkpoint(directory)
    (directory / "config.json").unlink()
    (directory / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"no config.json.*m\.gguf"):
        open_checkpoint(directory)
