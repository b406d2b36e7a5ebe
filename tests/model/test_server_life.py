"""The server's life: clients that leave, steps that fail, queues that are full, and the end."""

import asyncio
import json
import threading
import time

import pytest

from alpage import LLM
from alpage.errors import RankLost
from alpage.serve.http import EngineThread, Service, Settings
from tiny_llama import make_tiny_llama
from tiny_server import DEADLINE_S, NAME, Client, events_of, scope_of, service_of

MAX_LEN = 4096
LONG = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}
IDS = [5, 6, 7]


@pytest.fixture
def llm(tmp_path):
    make_tiny_llama(tmp_path, max_position_embeddings=MAX_LEN)
    return LLM(
        tmp_path,
        kv_memory="8MiB",
        dtype="float32",
        device="cpu",
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )


def num_free_pages(llm):
    return sum(m.num_free for engine in llm.engine.engines for m in engine.scheduler.memories)


async def until(is_so):
    """Wait for something that happens elsewhere."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.005)


class Call:
    """A request by itself, whose client reads what comes and leaves when it is told to."""

    def __init__(self, app, path, body):
        self._parts = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self._has_left = asyncio.Event()
        self.sent = []
        self.task = asyncio.create_task(app(scope_of(path), self._receive, self._send))

    def leave(self):
        self._has_left.set()

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def _receive(self):
        if self._parts:
            return self._parts.pop()
        await self._has_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)


# -- clients that leave ----------------------------------------------------------------------------

PHASES = {
    "queued": ({"prompt": IDS} | LONG, 4),
    "prompt": ({"prompt": [5, 6] * 45} | LONG, 0),
    "decode": ({"prompt": IDS} | LONG, 0),
    "several": ({"prompt": [IDS, [8, 9]], "n": 2} | LONG, 0),
    "best": ({"prompt": IDS, "n": 2, "best_of": 3} | LONG | {"temperature": 1.0}, 0),
    "beams": ({"prompt": IDS, "use_beam_search": True, "n": 3} | LONG, 0),
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_pages_are_free_once_the_client_has_left(llm, phase, is_streamed, monkeypatch):
    body, num_others = PHASES[phase]
    if is_streamed and phase == "best":
        body = body | {"n": 3}
    num_free = num_free_pages(llm)
    step, num_steps = llm.engine.step, 0

    def slow_step(*args):
        nonlocal num_steps
        time.sleep(0.01)
        advanced = step(*args)
        num_steps += 1
        return advanced

    monkeypatch.setattr(llm.engine, "step", slow_step)

    async def run():
        others = [
            Call(client.app, "/v1/completions", {"prompt": IDS} | LONG) for _ in range(num_others)
        ]
        await until(lambda: num_others == 0 or num_steps > 3)
        before = num_steps
        call = Call(client.app, "/v1/completions", body | {"stream": is_streamed})
        await until(lambda: num_steps > before + (0 if phase == "prompt" else 4))
        assert llm.engine.has_unfinished
        call.leave()
        left_at = num_steps
        for other in others:
            other.leave()
        await until(lambda: num_free_pages(llm) == num_free)
        assert num_steps <= left_at + 2
        await asyncio.gather(call.task, *(other.task for other in others))

    with service_of(llm) as service:
        client = Client(service)
        asyncio.run(run())
        assert client.complete(IDS, max_tokens=1)


# -- steps that fail -------------------------------------------------------------------------------


def failing_once(run, error):
    errors = [error]

    def start(*args):
        if errors:
            raise errors.pop()
        return run(*args)

    return start


def test_step_that_fails_answers_its_requests_alone(llm, monkeypatch, caplog):
    fault = failing_once(llm.engine.runner.start, ZeroDivisionError("a kernel's"))
    monkeypatch.setattr(llm.engine.runner, "start", fault)
    with service_of(llm) as service:
        client = Client(service)
        response = client.post("/v1/completions", {"prompt": IDS})
        assert response.status_code == 500
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "kernel" not in error["message"]
        assert client.get("/health").status_code == 200
        assert client.complete(IDS, max_tokens=3)
    assert "a kernel's" in caplog.text


def test_stream_that_fails_says_so_and_ends(llm, monkeypatch):
    run, num_steps = llm.engine.runner.start, 0

    def start(*args):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 10:
            raise ZeroDivisionError
        return run(*args)

    monkeypatch.setattr(llm.engine.runner, "start", start)
    with service_of(llm) as service:
        response = Client(service).post(
            "/v1/completions",
            {"prompt": IDS, "stream": True, "return_token_ids": True} | LONG,
        )
    *parts, last = events_of(response.text)
    assert len(parts) == 9
    assert last["error"]["code"] == "internal_error"


def test_scheduler_that_fails_does_not_fail_for_ever(llm, monkeypatch):
    fault = failing_once(llm.engine.scheduler.schedule, ZeroDivisionError())
    monkeypatch.setattr(llm.engine.scheduler, "schedule", fault)
    with service_of(llm) as service:
        client = Client(service)
        assert client.post("/v1/completions", {"prompt": IDS}).status_code == 500
        assert client.complete(IDS, max_tokens=3)


def test_lost_ranks_are_told(llm, monkeypatch):
    error = RankLost(field="rank", value=0, limit="its process died", remedy="Start again")

    def start(*_):
        raise error

    monkeypatch.setattr(llm.engine.runner, "start", start)
    with service_of(llm) as service:
        client = Client(service)
        assert client.get("/health").status_code == 200
        for _ in range(2):
            response = client.post("/v1/completions", {"prompt": IDS})
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_lost"
            assert "retry-after" in response.headers
        assert client.get("/health").status_code == 503
        assert client.get("/ready").status_code == 503


def test_loop_survives_what_no_step_raises(llm, monkeypatch):
    """An engine that cannot even abort is lost, and everybody is told."""

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(llm.engine, "step", fail)
    monkeypatch.setattr(llm.engine, "abort", fail)
    with service_of(llm) as service:
        client = Client(service)
        for status in (500, 503):
            assert client.post("/v1/completions", {"prompt": IDS}).status_code == status


def test_health_is_judged_by_progress(llm, monkeypatch):
    step, goes_on = llm.engine.step, threading.Event()

    def stuck_step(*args):
        assert goes_on.wait(DEADLINE_S)
        return step(*args)

    monkeypatch.setattr(llm.engine, "step", stuck_step)

    async def run():
        call = Call(client.app, "/v1/completions", {"prompt": IDS, "max_tokens": 2})
        await until(lambda: service.engine.state == "stalled")
        call_health = await asyncio.to_thread(client.get, "/health")
        assert call_health.status_code == 503
        assert call_health.json()["error"]["code"] == "engine_stalled"
        goes_on.set()
        await call.task
        assert call.status == 200

    with service_of(llm, stall_s=0.2) as service:
        client = Client(service)
        time.sleep(0.3)
        assert client.get("/health").status_code == 200, "without work there is no progress"
        asyncio.run(run())
        assert client.get("/health").status_code == 200


def test_silence_is_filled(llm, monkeypatch):
    step = llm.engine.step

    def slow_step(*args):
        time.sleep(0.2)
        return step(*args)

    monkeypatch.setattr(llm.engine, "step", slow_step)
    with service_of(llm, keep_alive_s=0.05) as service:
        body = {"prompt": IDS, "max_tokens": 2, "stream": True, "ignore_eos": True}
        text = Client(service).post("/v1/completions", body).text
    assert text.count(": still here\n\n") >= 4
    assert events_of(text)[-1]["choices"][0]["finish_reason"] == "length"


# -- too much at once, and the end -----------------------------------------------------------------


def test_queue_is_bounded(llm):
    num_free = num_free_pages(llm)

    async def run():
        calls = [Call(client.app, "/v1/completions", {"prompt": IDS} | LONG) for _ in range(8)]
        await until(lambda: service.engine._num_open == 8)
        late = Call(client.app, "/v1/completions", {"prompt": IDS})
        await late.task
        assert late.status == 429
        error = json.loads(late.text)["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert (b"retry-after", b"1") in late.sent[0]["headers"]
        for call in calls:
            call.leave()
        await asyncio.gather(*(call.task for call in calls))
        assert service.engine._num_open == 0

    with service_of(llm, queue_factor=1) as service:
        client = Client(service)
        asyncio.run(run())
        client.complete(IDS, max_tokens=1)
    assert num_free_pages(llm) == num_free


def test_draining_refuses_what_is_new_and_ends_what_is_old(llm):
    async def run():
        short = Call(client.app, "/v1/completions", {"prompt": IDS, "max_tokens": 50})
        long = Call(client.app, "/v1/completions", {"prompt": IDS, "stream": True} | LONG)
        await until(lambda: len(long.sent) > 2)
        service.engine.refuse_new()
        late = Call(client.app, "/v1/completions", {"prompt": IDS})
        await late.task
        assert (late.status, json.loads(late.text)["error"]["code"]) == (503, "shutting_down")
        await short.task
        assert short.status == 200
        service.engine.refuse_all()
        await long.task
        assert events_of(long.text)[-1]["error"]["code"] == "shutting_down"

    with service_of(llm) as service:
        client = Client(service)
        asyncio.run(run())
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_loop_that_stops_answers_everybody(llm):
    async def run():
        call = Call(client.app, "/v1/completions", {"prompt": IDS} | LONG)
        await until(lambda: llm.engine.has_unfinished)
        await asyncio.to_thread(service.engine.stop)
        await call.task
        assert call.status == 503

    service = Service(EngineThread(llm.engine), llm.tokenizer, Settings(names=(NAME,)))
    service.engine.start()
    client = Client(service)
    asyncio.run(run())
    assert not llm.engine.has_unfinished
