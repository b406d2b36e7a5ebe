"""`alpage bench serve`, against a server of its own and against one that is there."""

import json

import pytest

from tiny_llama import VOCAB_SIZE, make_tiny_llama
from tiny_server import NAME, process_of

SERVE = "--device cpu --dtype float32 --kv-memory 8MiB"
SHORT = ("--prompt-tokens", "8", "--output-tokens", "5", "--num-requests", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module")
def server(model):
    with process_of(model) as process:
        yield process


@pytest.fixture
def bench(server, command_line):
    """Run the benchmark against the server; return what it printed as JSON."""

    def run(*arguments):
        status, out, err = command_line(
            "bench", "serve", server.url, "--vocab-size", VOCAB_SIZE, "--json", *arguments
        )
        assert status == 0, err
        return json.loads(out)

    return run


def test_model_gets_a_server_of_its_own(model, command_line, tmp_path):
    page = tmp_path / "report.html"
    status, out, err = command_line(
        *("bench", "serve", model, *SHORT, "--rate", "50", "--slo-ttft", "60"),
        *("--serve-options", SERVE, "--html", page),
    )
    assert status == 0, err
    assert "output tokens                 30" in out
    assert "time to first token" in out
    assert "failed" not in out
    assert page.read_text().count("<svg") == 10


def test_rates_in_turn(bench):
    found = bench(*SHORT, "--rate", "20,inf", "--extra-body", '{"return_token_ids": true}')
    poisson, at_once = found["runs"]
    for run in (poisson, at_once):
        assert run["failures"] == {}
        assert (run["prompt_tokens"], run["output_tokens"]) == (6 * 8, 6 * 5)
        assert 0 < run["latencies"]["ttft_s"]["p50"]["value"] < run["wall_s"]
    assert poisson["pace"] is not None
    assert (at_once["pace"], at_once["rate"]) == (None, "inf")


def test_chats(bench, tmp_path):
    (run,) = bench(*SHORT, "--rate", "inf", "--endpoint", "chat")["runs"]
    assert (run["failures"], run["output_tokens"]) == ({}, 6 * 5)
    # Words of a tiny vocabulary are several tokens each.
    assert run["prompt_tokens"] > 6 * 8
    path = tmp_path / "w.jsonl"
    path.write_text('{"prompt": "text", "output_tokens": 3, "n": 2}\n')
    (run,) = bench("--workload", path, "--endpoint", "/v1/chat/completions")["runs"]
    assert (run["failures"], run["output_tokens"]) == ({}, 6)


@pytest.mark.parametrize("name", ["w.jsonl", "trace.csv"])
def test_workloads_are_replayed_at_their_times(bench, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,5,3\n"
            "2023-11-16 18:15:47.1805900,6,4\n"
        )
    else:
        path.write_text(
            '{"prompt": "text", "output_tokens": 3, "n": 2}\n'
            '{"prompt_tokens": 6, "output_tokens": 1, "arrival_s": 0.5}\n'
        )
    (run,) = bench("--workload", path)["runs"]
    assert run["failures"] == {}
    assert run["output_tokens"] == 7
    assert 0.5 <= run["wall_s"] < 5
    assert len(bench("--workload", path, "--num-requests", "1")["runs"]) == 1


def test_refusals_are_counted_by_kind(bench, tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"prompt_tokens": 5, "output_tokens": 2}\n{"prompt_tokens": 600, "output_tokens": 2}\n'
    )
    (run,) = bench("--workload", path)["runs"]
    assert run["failures"] == {"HTTP 400 context_length_exceeded": 1}


REFUSED = {
    "nobody there": (("http://127.0.0.1:9",), "cannot be used"),
    "no address": (("http://",), "cannot be used"),
    "another model": (("URL", "--model", "another"), "HTTP 404 model_not_found"),
    "ids the model has not": (("URL", "--vocab-size", "99999"), "--vocab-size"),
    "unknown field": (("URL", "--extra-body", '{"unheard": 1}'), "unknown_parameter"),
    "no object": (("URL", "--extra-body", "[]"), "is no JSON object"),
    "no endpoint": (("URL", "--endpoint", "responses"), "must be completions or chat"),
    "no rate": (("URL", "--rate", "fast"), "must be numbers"),
    "nought": (("URL", "--rate", "0"), "rate=0.0"),
    "no requests": (("URL", "--num-requests", "0"), "num_requests=0"),
    "options for nobody": (("URL", "--serve-options", "-v"), "is there already"),
    "no model": (("/no/such/model",), "is no path"),
    "a server that does not start": (("MODEL", "--serve-options", "--dtype nine"), "last words"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_told_in_a_line(arguments, message, server, model, command_line):
    places = {"URL": server.url, "MODEL": model}
    arguments = [places.get(argument, argument) for argument in arguments]
    status, out, err = command_line("bench", "serve", *arguments)
    assert (status, out) == (1, ""), err
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert NAME not in message
