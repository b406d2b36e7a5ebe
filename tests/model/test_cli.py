"""The command line with a tiny model: texts, figures, conversations, and what ends them early."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from alpage import LLM, BeamSearchParams, SamplingParams
from tiny_llama import make_tiny_llama

PROMPT = "Hello there"
MAX_LEN = 256
# Bounds the memory that each of these small engines takes, no more.
MEMORY = ("--kv-memory", "16MiB", "--dtype", "float32", "--device", "cpu")
DEADLINE_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=MAX_LEN)
    return path


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    """Answers that take long enough to be interrupted."""
    path = tmp_path_factory.mktemp("long")
    make_tiny_llama(path, max_position_embeddings=30_000)
    return path


@pytest.fixture(scope="module")
def llm(model):
    return LLM(model, kv_memory="16MiB", dtype="float32", device="cpu")


def generated(llm, params, prompt=PROMPT):
    return [completion.text for completion in llm.generate(prompt, params)[0].outputs]


# -- generate --------------------------------------------------------------------------------------


def test_generate_prints_the_text_and_then_the_figures(command_line, model, llm):
    status, out, err = command_line("generate", model, "-p", PROMPT, "--max-tokens", "20", *MEMORY)
    assert status == 0
    assert out == generated(llm, SamplingParams(temperature=0, max_tokens=20))[0] + "\n"
    assert err.count("\n") == 1
    assert err.startswith("20 tokens, ")
    assert " tokens/s, first token after " in err


def test_generate_streams(command_line, model, monkeypatch):
    """Every token's text is written when it is there, not at the end."""
    pieces = []
    monkeypatch.setattr(
        "alpage.cli.generate.print_text", lambda text, end="\n": pieces.append(text)
    )
    command_line("generate", model, "-p", PROMPT, "--max-tokens", "20", *MEMORY)
    assert len(pieces) > 10


def test_generate_takes_what_fits_unless_told(command_line, model):
    prompt = "x" * (MAX_LEN - 10)
    arguments = ("generate", model, "-p", prompt, "--json", *MEMORY)
    _, out, _ = command_line(*arguments)
    assert json.loads(out)["timings"]["output_tokens"] == 10
    status, out, err = command_line(*arguments, "--max-tokens", "11")
    assert (status, out) == (1, "")
    assert f"'{MAX_LEN - 10} + 11 tokens': may be at most {MAX_LEN} tokens together" in err


def test_generate_json_is_one_object(command_line, model, llm):
    status, out, err = command_line(
        "generate", model, "-p", PROMPT, "--max-tokens", "20", "--json", *MEMORY
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    (expected,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=20))
    assert found["prompt"] == PROMPT
    assert found["prompt_token_ids"] == list(expected.prompt_token_ids)
    (completion,) = found["outputs"]
    assert completion["text"] == expected.outputs[0].text
    assert completion["token_ids"] == list(expected.outputs[0].token_ids)
    assert completion["finish_reason"] == "length"
    timings = found["timings"]
    assert timings["prompt_tokens"] == len(found["prompt_token_ids"])
    assert timings["output_tokens"] == 20
    assert 0 < timings["first_token_s"] < timings["total_s"]
    if sys.platform == "linux":
        assert timings["first_token_from_start_s"] > timings["first_token_s"]


def test_options_reach_the_model(command_line, model, llm):
    status, out, _ = command_line(
        *("generate", model, "-p", "-", "--max-tokens", "12", "--n", "2", "--seed", "5"),
        *("--temperature", "0.9", "--top-p", "0.8", "--top-k", "30"),
        *MEMORY,
        stdin=PROMPT.encode() + b"\n",
    )
    assert status == 0
    params = SamplingParams(n=2, max_tokens=12, seed=5, temperature=0.9, top_p=0.8, top_k=30)
    first, second = generated(llm, params)
    assert out == f"=== 1 of 2 ===\n{first}\n=== 2 of 2 ===\n{second}\n"


def test_stop_ends_the_text(command_line, model, llm):
    text = generated(llm, SamplingParams(temperature=0, max_tokens=20))[0]
    stop = text[5:7]
    _, out, _ = command_line(
        *("generate", model, "-p", PROMPT, "--stop", "never to be seen", "--stop", stop, *MEMORY)
    )
    assert out == text[: text.index(stop)] + "\n"


def test_beams_are_searched(command_line, model, llm):
    _, out, _ = command_line(
        *("generate", model, "-p", PROMPT, "--beam-width", "3", "--max-tokens", "12", *MEMORY)
    )
    assert out == generated(llm, BeamSearchParams(beam_width=3, n=1, max_tokens=12))[0] + "\n"


def test_chat_option_asks_by_the_template(command_line, model, llm):
    params = SamplingParams(temperature=0, max_tokens=12)
    (expected,) = llm.chat([{"role": "user", "content": PROMPT}], params)
    _, out, _ = command_line(
        "generate", model, "--chat", "-p", PROMPT, "--max-tokens", "12", *MEMORY
    )
    assert out == expected.outputs[0].text + "\n"


def test_without_a_seed_texts_differ(command_line, model):
    arguments = (
        "generate",
        model,
        "-p",
        PROMPT,
        "--temperature",
        "2",
        "--max-tokens",
        "12",
        *MEMORY,
    )
    assert command_line(*arguments)[1] != command_line(*arguments)[1]


# -- chat ------------------------------------------------------------------------------------------


def test_chat_remembers_and_reuses_the_cache(command_line, model, llm):
    status, out, err = command_line(
        *("chat", model, "--system", "Be brief.", "--max-tokens", "12", *MEMORY),
        stdin=b"How are you?\n\nAnd now?\n",
    )
    assert status == 0
    messages = [{"role": "system", "content": "Be brief."}]
    answers = []
    for question in ("How are you?", "And now?"):
        messages.append({"role": "user", "content": question})
        (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=12))
        answers.append(output.outputs[0].text)
        messages.append({"role": "assistant", "content": answers[-1]})
    assert out == f"{answers[0]}\n{answers[1]}\n"
    first, second = err.splitlines()
    assert "cached" not in first
    assert "prompt tokens cached" in second


def test_chat_json_is_an_object_a_turn(command_line, model):
    status, out, err = command_line(
        *("chat", model, "--max-tokens", "12", "--json", *MEMORY), stdin=b"One\n/reset\nOne\nTwo"
    )
    assert (status, err) == (0, "")
    turns = [json.loads(line) for line in out.splitlines()]
    assert [turn["prompt"] for turn in turns] == ["One", "One", "Two"]
    assert turns[0]["text"] == turns[1]["text"]  # what was said before /reset is forgotten
    num_prompt_tokens = [turn["timings"]["prompt_tokens"] for turn in turns]
    assert num_prompt_tokens[0] == num_prompt_tokens[1] < num_prompt_tokens[2]
    assert turns[2]["timings"]["cached_tokens"] > 0


def test_chat_seed_makes_it_repeatable(command_line, model):
    arguments = (
        "chat",
        model,
        "--seed",
        "3",
        "--temperature",
        "1.5",
        "--max-tokens",
        "12",
        *MEMORY,
    )
    stdin = b"One\n/reset\nOne\n"
    _, out, _ = command_line(*arguments, stdin=stdin)
    assert command_line(*arguments, stdin=stdin)[1] == out
    half = len(out) // 2
    assert out[:half] != out[half:]


def test_exit_leaves(command_line, model):
    status, out, _ = command_line("chat", model, *MEMORY, stdin=b"/exit\nOne\n")
    assert (status, out) == (0, "")


def test_conversation_that_is_too_long_says_so(command_line, model):
    long = "x" * 100
    status, out, err = command_line(
        *("chat", model, "--json", "--max-tokens", "60", *MEMORY),
        stdin=f"{long}\n{long}\n{long}\n".encode(),
    )
    assert status == 1
    # An answer that would not fit whole is shorter, and ends for that reason.
    lengths = [json.loads(line)["timings"]["output_tokens"] for line in out.splitlines()]
    assert lengths[0] == 60
    assert err.startswith("error: conversation=")
    assert f"leaves no room for an answer within {MAX_LEN} tokens. Type /reset" in err


def test_answers_longer_than_the_model_are_refused(command_line, model):
    status, out, err = command_line("chat", model, "--max-tokens", MAX_LEN, *MEMORY, stdin=b"One\n")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: --max-tokens={MAX_LEN}: ")


# -- models that cannot ----------------------------------------------------------------------------


def test_model_without_a_template_cannot_chat(command_line, tmp_path):
    make_tiny_llama(tmp_path, with_chat=False)
    for arguments in (("chat", tmp_path), ("generate", tmp_path, "--chat", "-p", "x")):
        status, out, err = command_line(*arguments, *MEMORY, stdin=b"One\n")
        assert (status, out) == (1, "")
        assert "holds no chat template" in err


def test_model_without_a_file_says_which(command_line, tmp_path):
    make_tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    status, _, err = command_line("generate", tmp_path, "-p", "x", *MEMORY)
    assert status == 1
    assert err.startswith("error: ")
    assert "safetensors" in err


@pytest.mark.parametrize("prompt", ["", "x" * MAX_LEN], ids=["empty", "too long"])
def test_prompt_out_of_range_is_refused(prompt, command_line, model):
    status, out, err = command_line("generate", model, "-p", prompt, *MEMORY)
    assert (status, out) == (1, "")
    assert err.startswith("error: prompt")


# -- Ctrl-C and pipes that close -------------------------------------------------------------------


def start(*arguments, **streams):
    command = [sys.executable, "-m", "alpage", *map(str, arguments), *MEMORY]
    return subprocess.Popen(command, env=os.environ | {"TERM": "dumb"}, **streams)


def test_interrupt_ends_generate_quietly(long_model):
    process = start(
        *("generate", long_model, "-p", PROMPT, "--max-tokens", "20000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (130, b"")


def test_reader_that_leaves_ends_generate_quietly(long_model):
    process = start(
        *("generate", long_model, "-p", PROMPT, "--max-tokens", "20000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(10)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=DEADLINE_S), err) == (1, b"")
    process.stderr.close()


def test_closed_streams_are_empty(long_model):
    closed = {"preexec_fn": lambda: os.close(0) or os.close(1), "stderr": subprocess.PIPE}
    process = start("generate", long_model, "-p", "-", **closed)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert err.startswith(b"error: prompt=[]")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_full_disk_is_an_error(long_model):
    with Path("/dev/full").open("wb") as full:
        process = start("generate", long_model, "-p", "x", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert err.startswith(b"error: stdout=")
    assert err.count(b"\n") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_first_interrupt_stops_an_answer_and_the_next_leaves(long_model):
    keyboard, terminal = os.openpty()
    process = start(
        *("chat", long_model, "--max-tokens", "20000"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    read_until(keyboard, b"> ")
    os.write(keyboard, b"Hello\n")
    read_until(keyboard, b"Hello\r\n")
    os.read(keyboard, 1)
    process.send_signal(signal.SIGINT)
    read_until(keyboard, b", stopped\r\n> ")
    process.send_signal(signal.SIGINT)
    with suppress(OSError):
        # Wakes readline, which may have been about to wait for a key and would notice then.
        os.write(keyboard, b"\n")
    assert process.wait(timeout=DEADLINE_S) == 130
    os.close(keyboard)


def read_until(keyboard, mark):
    found = b""
    while mark not in found:
        found += os.read(keyboard, 1024)
    return found
