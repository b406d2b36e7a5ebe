"""A server under mixed load, for some seconds of what benchmarks/soak.py does for half an hour."""

import asyncio
import random

import httpx
import pytest
from benchmarks.soak import VICTIMS, Plan, Soak, to_text
from benchmarks.soak_acts import streamed, whole

from tiny_llama import make_tiny_llama

OPTIONS = ("--device", "cpu", "--dtype", "float32", "--max-num-seqs", "8")


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_tiny_llama(tmp_path, max_position_embeddings=1024)
    return str(tmp_path)


@pytest.mark.slow
def test_everybody_is_answered_and_nothing_is_left(model):
    # So little memory that requests preempt one another.
    plan = Plan(model=model, duration_s=10, options=(*OPTIONS, "--kv-memory", "256KiB"))
    report = asyncio.run(Soak(plan).run())
    assert not report.problems, to_text(report)
    ends = {end for _, end in report.answers}
    assert ends >= {"200", "400", "left"}
    assert report.answers.total() > 100


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_everybody_is_answered_when_the_engine_is_killed(model, victim):
    options = (*OPTIONS, "--kv-memory", "8MiB", *VICTIMS[victim])
    plan = Plan(model=model, duration_s=6, kill_every_s=3, victim=victim, options=options, seed=1)
    report = asyncio.run(Soak(plan).run())
    assert not report.problems, to_text(report)
    assert report.num_kills == 1
    # Another engine may take over all that was under way, but nobody takes over from a server.
    if victim == "rank":
        assert {end for _, end in report.answers} & {"503", "stream failed: engine_lost"}


ERROR = b'{"error": {"message": "", "type": "server_error", "param": null, "code": null}}'


@pytest.mark.parametrize(
    ("act", "answer", "has_problem"),
    [
        (whole, (200, b'{"choices": [1]}'), False),
        (whole, (429, ERROR), False),
        (whole, (200, b'{"choices": []}'), True),
        (whole, (500, ERROR), True),
        (whole, (400, b'{"detail": "no"}'), True),
        (whole, (502, b"<html>"), True),
        (streamed, (200, b'data: {"choices": []}\n\ndata: [DONE]\n\n'), False),
        (streamed, (200, b'data: {"choices": []}\n\n'), True),
        (streamed, (200, b"data: " + ERROR + b"\n\ndata: [DONE]\n\n"), True),
    ],
)
def test_soak_notices_what_is_no_answer(act, answer, has_problem):
    status, body = answer

    async def run():
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            soak = Soak(Plan(model="", duration_s=0))
            await soak._once(act, client, random.Random(0))
            return soak.report

    assert bool(asyncio.run(run()).problems) == has_problem
