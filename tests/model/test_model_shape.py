"""`alpage plan inference` for a model on disk: a config.json, its directory, a .gguf file."""

import json

import pytest

from alpage.cli.model_shape import model_shape
from alpage.errors import AlpageError
from alpage.shapes import named_shape
from alpage.workload import ModelShape
from tiny_gguf import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MIDDLE, VOCAB, llama_weights, write_llama

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
SHAPE = ModelShape(
    num_layers=2,
    d_model=HIDDEN,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    d_ff=MIDDLE,
    num_ffn_matrices=3,
    vocab_size=VOCAB,
    is_tied=True,
)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tmp_path


def test_config_and_its_directory_have_the_same_sizes(directory):
    assert model_shape(str(directory)) == SHAPE
    assert model_shape(str(directory / "config.json")) == SHAPE


def test_gguf(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", llama_weights(), extra=None, vocabulary=VOCABULARY)
    assert model_shape(str(path)) == SHAPE


VOCABULARY = {"model": "llama", "tokens": [f"<{i}>" for i in range(VOCAB)], "kinds": [1] * VOCAB}


def test_known_names_need_no_file():
    assert model_shape("gpt2") == named_shape("gpt2")


def test_command_takes_a_directory(directory, command_line):
    arguments = ("--cluster", "h100-4", "--phase", "decode", "--json")
    status, out, _ = command_line("plan", "inference", "--model", directory, *arguments)
    assert status == 0
    assert json.loads(out)["model"] == str(directory)


WRONG = {
    "cut short": (b'{"hidden_size": 6', "is not valid JSON"),
    "no text": (b"\xff\xfe\x00", "is not valid JSON"),
    "deep": (b"[" * 100_000, "is not valid JSON"),
    "a list": (b"[1]", "holds a list and must hold an object"),
    "empty": (b"", "is not valid JSON"),
    "another architecture": (b'{"architectures": ["NoSuchModel"]}', "must be one of GPT2LMHead"),
    "no sizes": (b'{"architectures": ["LlamaForCausalLM"]}', "error: "),
    "a size that is none": (
        json.dumps(CONFIG | {"hidden_size": "wide"}).encode(),
        "hidden_size='wide'",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_config_is_one_line_and_status_1(content, message, directory, command_line):
    (directory / "config.json").write_bytes(content)
    arguments = ("--model", directory, "--cluster", "tpu-v4-64")
    status, out, err = command_line("plan", "inference", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_directory_without_a_config_says_so(tmp_path):
    with pytest.raises(AlpageError, match="cannot be read: No such file"):
        model_shape(str(tmp_path))


def test_gguf_that_is_none_says_so(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(AlpageError):
        model_shape(str(path))
