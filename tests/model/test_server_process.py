"""`alpage serve` as a process: OpenAI's own client, and every way to end it."""

import os
import signal
import socket
import threading
import time
from collections import Counter

import httpx
import openai
import pytest
from benchmarks.processes import children_of, is_alive
from prometheus_client.parser import text_string_to_metric_families

from tiny_llama import make_tiny_llama
from tiny_server import DEADLINE_S, NAME, process_of

MAX_ORPHAN_S = 5
IN_PROCESS = ("--engine", "process")
KINDS = ("thread", "process")
LONG = {"max_tokens": 400, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module")
def server(model):
    with process_of(model) as process:
        yield process
        assert process.end() == 0


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def until_all_gone(pids):
    end_s = time.monotonic() + MAX_ORPHAN_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end_s, f"{pids} are still there"
        time.sleep(0.02)


def until_one_runs(url):
    end_s = time.monotonic() + DEADLINE_S
    while 'alpage_requests_running{model="tiny"} 1.0' not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < end_s, "nothing runs"
        time.sleep(0.01)


# -- OpenAI's client -------------------------------------------------------------------------------


def test_openai_completes(client):
    whole = client.completions.create(model=NAME, prompt="Hello", max_tokens=8, temperature=0)
    assert whole.choices[0].finish_reason in {"length", "stop"}
    assert whole.usage.completion_tokens <= 8
    stream = client.completions.create(
        model=NAME, prompt="Hello", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text


def test_openai_chats(client):
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model=NAME,
        messages=messages,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *parts, last = stream
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert not last.choices


def test_openai_lists_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"model": "another"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "prompt"),
        ({"suffix": "!"}, openai.BadRequestError, "suffix"),
        ({"extra_body": {"unheard_of": 1}}, openai.BadRequestError, "unheard_of"),
    ],
)
def test_openai_knows_the_errors(client, arguments, error, param):
    with pytest.raises(error) as raised:
        client.completions.create(**{"model": NAME, "prompt": "Hello", **arguments})
    assert raised.value.param == param
    assert raised.value.code
    assert raised.value.request_id


# -- clients who do not behave ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["zeros", "version", "half a body", "negative length", "long address"],
)
def test_nonsense_harms_nobody(server, client, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(sent)
        assert client.completions.create(model=NAME, prompt="Hello", max_tokens=2).choices


def test_clients_who_do_not_read_do_not_hold_others_up(server, client):
    body = b'{"prompt": [5], "max_tokens": 500, "stream": true, "ignore_eos": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    for connection in sockets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(head.encode() + body)
    assert client.completions.create(model=NAME, prompt="Hello", max_tokens=2).choices
    for connection in sockets:
        connection.close()


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "arguments"),
    [(signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGTERM, IN_PROCESS)],
    ids=["terminate", "interrupt", "terminate a process"],
)
def test_what_has_begun_is_answered_before_the_end(model, number, arguments):
    with process_of(model, *arguments) as server:
        children, answers = children_of(server.program.pid), []

        def ask():
            body = {"prompt": [5, 6], "max_tokens": 400, "ignore_eos": True}
            answers.append(
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=DEADLINE_S)
            )

        thread = threading.Thread(target=ask)
        thread.start()
        until_one_runs(server.url)
        status = server.end(number)
        thread.join()
    assert status == 0
    until_all_gone(children)
    assert answers[0].json()["usage"]["completion_tokens"] == 400


@pytest.mark.parametrize(
    "arguments",
    [(), ("--devices", "2"), (*IN_PROCESS, "--devices", "2")],
    ids=["one", "ranks", "process and ranks"],
)
def test_nothing_is_left_of_a_server_that_was_killed(model, arguments):
    with process_of(model, *arguments) as server:
        port, children = server.port, children_of(server.program.pid)
        assert bool(children) == bool(arguments)
        server.end(signal.SIGKILL)
        until_all_gone(children)
    with process_of(model, "--port", str(port)) as again:
        assert httpx.get(f"{again.url}/ready").status_code == 200
        assert again.end() == 0


def test_server_that_lost_a_rank_says_so_and_ends(model):
    with process_of(model, "--devices", "2") as server:
        body = {"prompt": [5, 6], "max_tokens": 4}
        url = f"{server.url}/v1/completions"
        assert httpx.post(url, json=body, timeout=DEADLINE_S).status_code == 200
        children = children_of(server.program.pid)
        rank = max(children)
        os.kill(rank, signal.SIGKILL)
        assert httpx.post(url, json=body, timeout=DEADLINE_S).status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 503
        server.end()
        until_all_gone(children)


# -- an engine that is killed ----------------------------------------------------------------------


def engine_of(server):
    (engine,) = children_of(server.program.pid)
    return engine


def counters_of(server):
    """All that may only grow, summed over labels, but what is told of a process."""
    found = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        if family.type in {"counter", "histogram"} and "process" not in family.name:
            for sample in family.samples:
                found[sample.name + sample.labels.get("le", "")] += sample.value
    return found


def until_ready(server):
    until_answer(f"{server.url}/ready", 200)


def until_answer(url, status):
    end_s = time.monotonic() + DEADLINE_S
    while httpx.get(url).status_code != status:
        assert time.monotonic() < end_s, f"{url} does not answer {status}"
        time.sleep(0.01)


def test_engine_that_is_killed_is_replaced_and_nobody_is_left_waiting(model):
    body = {"prompt": [5, 6], "max_tokens": 400, "temperature": 1, "seed": 3, "ignore_eos": True}
    arguments = (*IN_PROCESS, "--vllm-metrics")
    with process_of(model, *arguments) as server, httpx.Client(timeout=DEADLINE_S) as client:
        url = f"{server.url}/v1/completions"
        expected = client.post(url, json=body).json()["choices"]
        before, answers = counters_of(server), []
        engine = engine_of(server)
        os.kill(engine, signal.SIGSTOP)
        ask = [
            threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=60)))
            for _ in range(3)
        ]
        for thread in ask:
            thread.start()
        time.sleep(0.3)
        os.kill(engine, signal.SIGKILL)
        until_all_gone({engine})
        # The server hears of it a moment later, and another engine takes a second at least.
        until_answer(f"{server.url}/ready", 503)
        assert client.get(f"{server.url}/ready").json()["error"]["code"] == "engine_restarting"
        assert client.get(f"{server.url}/health").status_code == 200
        for thread in ask:
            thread.join()
        assert [answer.json()["choices"] for answer in answers] == [expected] * 3
        until_ready(server)
        after = counters_of(server)
        assert [name for name, value in before.items() if after[name] < value] == []
        assert (
            after["alpage_generated_tokens_total"] == after["vllm:generation_tokens_total"] == 1600
        )
        with client.stream("POST", url, json=body | {"stream": True}) as stream:
            parts = stream.iter_text()
            first = next(parts)
            os.kill(engine_of(server), signal.SIGKILL)
            text = first + "".join(parts)
        assert '"code":"engine_lost"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert client.post(url, json=body).json()["choices"] == expected
        assert counters_of(server)["alpage_engine_restarts_total"] == 2
        assert "alpage_engine_process_resident" in client.get(f"{server.url}/metrics").text
        assert client.get(f"{server.url}/live/snapshot").json()["num_running"] == 0
        forms = body | {"structured_outputs": {"choice": ["abc"]}}
        assert client.post(url, json=forms).json()["choices"][0]["text"] == "abc"
        engine = engine_of(server)
        assert server.end() == 0
        until_all_gone({engine})


def test_engine_that_loads_ends_with_its_server(model):
    with process_of(model, *IN_PROCESS) as server:
        engine = engine_of(server)
        os.kill(engine, signal.SIGKILL)
        end_s = time.monotonic() + DEADLINE_S
        while children_of(server.program.pid) in ({engine}, set()):
            assert time.monotonic() < end_s, "there is no other engine"
        children = children_of(server.program.pid)
        server.end(signal.SIGKILL)
        begin_s = time.monotonic()
        until_all_gone(children)
        assert time.monotonic() - begin_s < 2


@pytest.mark.slow
def test_server_ends_when_there_is_no_other_engine(tmp_path):
    make_tiny_llama(tmp_path)
    with process_of(tmp_path, *IN_PROCESS) as server:
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
        os.kill(engine_of(server), signal.SIGKILL)
        body = {"prompt": [5, 6], "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=DEADLINE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
        assert server.wait() == 1
    assert "error: engine='3 in a row': was lost" in server.said[-1]


def test_model_that_cannot_be_loaded_is_refused(model, command_line):
    options = ("--device", "cpu", "--port", "0", "--kv-memory", "1KiB")
    said = [command_line("serve", str(model), *options, "--engine", kind)[2] for kind in KINDS]
    assert "kv_memory" in said[0]
    assert said[0] == said[1]


# -- a wrong start ---------------------------------------------------------------------------------


def test_address_that_is_taken_is_refused(model, server, command_line):
    status, _, said = command_line("serve", str(model), "--port", str(server.port))
    assert status == 1
    assert "is taken" in said
    assert "Choose another port" in said


@pytest.mark.parametrize("port", ["-1", "65536", "99999"])
def test_port_that_is_none_is_refused(model, port, command_line):
    status, _, said = command_line("serve", str(model), "--port", port)
    assert status == 1
    assert "between 0 and 65,535" in said


def test_engine_of_no_kind_is_refused(model, command_line):
    status, _, said = command_line("serve", str(model), "--port", "0", "--engine", "ray")
    assert status == 1
    assert "thread or process" in said
