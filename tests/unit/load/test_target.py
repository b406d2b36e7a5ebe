"""Target: what is read of streams, good and bad, and what each failure is called."""

import asyncio
import json
import time
from contextlib import suppress

import pytest

from alpage.errors import InvalidValue
from alpage.load import Load, Target, generate
from alpage.load.target import to_body
from alpage.workload_file import RequestSpec

SPEC = RequestSpec(prompt_tokens=3, output_tokens=4)
DONE = b"data: [DONE]\n\n"
MODELS = b'{"data": [{"id": "tiny"}]}'


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(text, index=0, **fields):
    return event({"choices": [{"index": index, "text": text}], **fields})


def http(status, body, kind=b"text/event-stream"):
    head = b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nConnection: close\r\n\r\n" % (status, kind)
    return head + body


async def ask(
    *pieces, gap_s=0.0, timeout_s=5.0, prompt=(5, 6, 7), endpoint="completions", **options
):
    """Send a request to a server that answers so; return the outcome, and what it was sent."""
    seen, has_ended = [], asyncio.Event()

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(
            (int(line.split(b":")[1]) for line in head.splitlines() if b"content-length" in line),
            0,
        )
        seen.append((head, await reader.readexactly(length)))
        with suppress(ConnectionError):
            for number, piece in enumerate(pieces):
                await asyncio.sleep(gap_s if number else 0)
                writer.write(piece)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        has_ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
        options = {"model": "m", "api_key": None, **options}
        async with Target(url, timeout_s=timeout_s, **options) as target:
            body = to_body(SPEC, prompt, {}, endpoint)
            outcome = await target.send(body, 0.0, time.perf_counter())
        await has_ended.wait()
    return outcome, seen


def test_stream_is_timed_and_counted():
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
    first = text("a") + text("", 1)
    pieces = [http(200, first), text("b", 1), b": still here\n\n" + text("c"), usage + DONE]
    outcome, ((head, body),) = asyncio.run(ask(*pieces, gap_s=0.05, api_key="secret"))
    assert outcome.failure is None
    assert [len(times_s) for times_s in outcome.part_times_s] == [2, 1]
    assert outcome.gaps_s == pytest.approx([0.1], abs=0.04)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (3, 9)
    assert b"authorization: bearer secret" in head
    assert json.loads(body) == {
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 4,
        "n": 1,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_is_sent_where_chats_are_and_read():
    def said(delta):
        return event({"choices": [{"index": 0, "delta": delta}]})

    first = said({"role": "assistant", "content": ""})
    stream = http(200, first + said({"reasoning_content": "a"}) + said({"content": "b"}) + DONE)
    outcome, ((head, body),) = asyncio.run(ask(stream, prompt="Hi", endpoint="chat"))
    assert (outcome.failure, outcome.output_tokens) == (None, 2)
    assert head.startswith(b"post /v1/chat/completions ")
    asked = json.loads(body)
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert (asked["max_tokens"], "prompt" in asked) == (4, False)


def test_chat_has_no_token_ids():
    with pytest.raises(InvalidValue, match="is a text"):
        to_body(SPEC, [5, 6], {}, "chat")


def test_tokens_without_text_are_tokens():
    part = event({"choices": [{"index": 0, "text": "", "token_ids": [7]}]})
    outcome, _ = asyncio.run(ask(http(200, part + part + DONE)))
    assert outcome.output_tokens == 2


def test_parts_may_come_in_any_pieces():
    stream = http(200, text("é") + text("b") + DONE)
    outcome, _ = asyncio.run(ask(*(stream[place : place + 7] for place in range(0, 400, 7))))
    assert (outcome.failure, outcome.output_tokens) == (None, 2)


FAILURES = {
    "no end": ([http(200, text("a"))], "stream cut off"),
    "no JSON": ([http(200, b"data: {\n\n" + DONE)], "unreadable part of a stream"),
    "an error": (
        [http(200, event({"error": {"code": "internal_error"}}) + DONE)],
        "failed in its stream: internal_error",
    ),
    "refused": ([http(429, b'{"error": {"code": "rate"}}')], "HTTP 429 rate"),
    "refused in prose": ([http(502, b"<html>")], "HTTP 502"),
    "nonsense": ([b"\0\0\0\r\n\r\n"], "connection lost: ClientResponseError"),
}


@pytest.mark.parametrize(("pieces", "failure"), FAILURES.values(), ids=FAILURES)
def test_failures_have_a_kind(pieces, failure):
    assert asyncio.run(ask(*pieces))[0].failure == failure


def test_requests_do_not_take_for_ever():
    outcome, _ = asyncio.run(ask(http(200, text("a")), text("b"), gap_s=0.6, timeout_s=0.2))
    assert outcome.failure == "no answer within 0.2 s"


def test_nobody_there_is_an_error():
    async def run():
        async with Target("http://127.0.0.1:9", model=None, api_key=None, timeout_s=1.0) as target:
            load = Load(specs=[SPEC], arrivals_s=[0.0], vocab_size=9, seed=0, extra={})
            await generate(target, load)

    with pytest.raises(InvalidValue, match="cannot be used"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "key", "field"),
    [("ftp://x", None, "target"), ("http://127.0.0.1:9", "two\nlines", "api_key")],
)
def test_what_cannot_be_sent_is_refused_at_once(url, key, field):
    with pytest.raises(InvalidValue) as caught:
        Target(url, model="m", api_key=key, timeout_s=1.0)
    assert caught.value.field == field
    assert "lines" not in str(caught.value)


def test_null_leaves_a_field_out():
    body = to_body(SPEC, "text", {"stream_options": None, "temperature": 0.5})
    assert "stream_options" not in body
    assert body["temperature"] == 0.5
    beams = RequestSpec(prompt_tokens=1, output_tokens=1, beam_width=3)
    assert to_body(beams, "x", {})["use_beam_search"] is True


class Slow:
    """A server that answers after a time, and knows how many wait at once."""

    url = "http://slow"

    def __init__(self):
        self.num_under_way = self.most_under_way = 0

    async def check(self):
        return "slow"

    async def send(self, body, arrival_s, start_s):
        from alpage.load.outcome import Outcome

        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        sent_s = time.perf_counter() - start_s
        await asyncio.sleep(0.1)
        self.num_under_way -= 1
        return Outcome(arrival_s=arrival_s, sent_s=sent_s, ended_s=time.perf_counter() - start_s)


def test_loop_is_open():
    """Requests go out at their times, whether or not others are answered."""
    server, arrivals_s = Slow(), [0.05, 0.0, 0.02]
    load = Load(specs=[SPEC] * 3, arrivals_s=arrivals_s, vocab_size=9, seed=0, extra={})
    found = asyncio.run(generate(server, load))
    assert [outcome.arrival_s for outcome in found] == arrivals_s
    for outcome in found:
        assert outcome.arrival_s <= outcome.sent_s < outcome.arrival_s + 0.04
    assert server.most_under_way == 3


def test_waiting_for_a_place_counts():
    server = Slow()
    load = Load(
        specs=[SPEC] * 3, arrivals_s=[0.0] * 3, vocab_size=9, seed=0, extra={}, max_concurrency=1
    )
    found = asyncio.run(generate(server, load))
    assert server.most_under_way == 1
    assert max(outcome.e2e_s for outcome in found) >= 0.3
