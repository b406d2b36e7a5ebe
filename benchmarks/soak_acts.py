"""Soak acts: what clients do to a server, well-behaved and not, and whether they got their answer.

An act returns a word for what came of it, and raises `Unanswered` if it should have had an answer
and has none, or one that OpenAI's clients would not know.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import httpx

Act: TypeAlias = Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Ids that the smallest vocabulary of the tests has, none of them special.
_IDS = range(10, 290)
_MAX_PATIENCE_S = 1.0

MALFORMED: Mapping[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"prompt": "\xff"}',
    "half a surrogate": b'{"prompt": "\\ud800"}',
    "not a number": b'{"prompt": [5], "temperature": NaN}',
    "deep": b"[" * 100_000,
    "no object": b"[]",
    "no prompt": b'{"max_tokens": 3}',
    "an empty prompt": b'{"prompt": []}',
    "unknown ids": b'{"prompt": [999999999]}',
    "negative ids": b'{"prompt": [-1]}',
    "text for a number": b'{"prompt": [5], "max_tokens": "many"}',
    "half a token": b'{"prompt": [5], "max_tokens": 1.5}',
    "no tokens": b'{"prompt": [5], "max_tokens": -3}',
    "too many tokens": b'{"prompt": [5], "max_tokens": 1000000000}',
    "too many continuations": b'{"prompt": [5], "n": 100000}',
    "a huge number": b'{"prompt": [5], "seed": 1' + b"0" * 400 + b"}",
    "unknown field": b'{"prompt": [5], "unheard_of": 1}',
    "another model": b'{"prompt": [5], "model": "another"}',
    "a long prompt": b'{"prompt": "' + b"long " * 200_000 + b'"}',
}


class Unanswered(Exception):
    """Somebody has waited for nothing, or got what nobody can read."""


def acts(*, has_chat: bool) -> list[tuple[float, Act]]:
    """Return what clients do, and how often each is done beside the others."""
    found: list[tuple[float, Act]] = [
        (4, whole),
        (6, streamed),
        (1, beams),
        (3, left_stream),
        (2, left_whole),
        (3, malformed),
        (1, half_a_body),
        (1, looked_at),
    ]
    return [*found, (2, chat), (2, formed), (1, called)] if has_chat else found


async def whole(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Ask for a completion."""
    return _read(await client.post(COMPLETIONS, json=_body(draw)), "choices")


async def beams(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Ask for a beam search."""
    body = {"prompt": _prompt(draw), "max_tokens": draw.randint(1, 16)}
    body |= {"use_beam_search": True, "n": draw.randint(2, 4)}
    return _read(await client.post(COMPLETIONS, json=body), "choices")


async def chat(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Talk."""
    messages = [{"role": "user", "content": "word " * draw.randint(1, 6)}]
    body = {"messages": messages, "max_tokens": draw.randint(1, 32)}
    return _read(await client.post(CHAT, json=body), "choices")


async def formed(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Ask for a text of a form, which is new now and then."""
    name = f"p{draw.randrange(1_000)}"
    schema = {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}
    form = draw.choice([{"json": schema}, {"regex": f"{name}[a-z ]+"}, {"choice": [name, "no"]}])
    body = {"prompt": _prompt(draw), "max_tokens": draw.randint(1, 24), "structured_outputs": form}
    return _read(await client.post(COMPLETIONS, json=body), "choices")


async def called(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Have a tool called."""
    properties = {"place": {"type": "string", "maxLength": 8}}
    schema = {"type": "object", "properties": properties, "required": ["place"]}
    function = {"name": f"f{draw.randrange(100)}", "parameters": schema}
    body = {"messages": [{"role": "user", "content": "go"}], "max_tokens": draw.randint(1, 24)}
    body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    return _read(await client.post(CHAT, json=body), "choices")


async def streamed(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Ask for a completion, and read it as it comes."""
    body = _body(draw) | {"stream": True}
    async with client.stream("POST", COMPLETIONS, json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            await answer.aread()
            return _read(answer, "choices")
        text = (await answer.aread()).decode()
    *events, last = [line for line in text.split("\n\n") if line.startswith("data: ")]
    if last != "data: [DONE]":
        raise Unanswered(f"a stream ended with {last[-80:]}")
    error = json.loads(events[-1].removeprefix("data: ")).get("error")
    return f"stream failed: {error['code']}" if error else "200"


async def left_stream(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Go away in the middle of a stream."""
    body = _body(draw) | {"stream": True}
    async with client.stream("POST", COMPLETIONS, json=body) as answer:
        num_parts = draw.randint(0, 8)
        async for _ in answer.aiter_raw():
            num_parts -= 1
            if num_parts <= 0:
                break
    return "left"


async def left_whole(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Wait for a completion, but not to its end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(draw.random() * _MAX_PATIENCE_S):
            return await whole(client, draw)
    return "left"


async def malformed(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Send what is no request."""
    name = draw.choice(list(MALFORMED))
    path = COMPLETIONS if draw.random() < 0.8 else CHAT
    headers = {"content-type": "application/json"}
    answer = await client.post(path, content=MALFORMED[name], headers=headers)
    status = _read(answer, "choices")
    if answer.status_code < 400:
        raise Unanswered(f"{name} was answered with {status}")
    return status


async def half_a_body(client: httpx.AsyncClient, _: random.Random) -> str:
    """Begin a request and hang up."""
    url = client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    with suppress(ConnectionError):
        await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return "left"


async def looked_at(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Ask how it goes."""
    answer = await client.get(draw.choice(["/v1/models", "/metrics", "/version", "/openapi.json"]))
    if answer.status_code != httpx.codes.OK or not answer.content:
        raise Unanswered(f"{answer.request.url} said {answer.status_code}")
    return "200"


def _prompt(draw: random.Random) -> list[int]:
    # Some begin alike, so that there is something to share.
    shared = list(_IDS)[: draw.choice([0, 0, 16, 40])]
    return [*shared, *draw.choices(_IDS, k=draw.randint(1, 60))]


def _body(draw: random.Random) -> dict[str, Any]:
    prompts = [_prompt(draw) for _ in range(draw.choice([1, 1, 1, 3]))]
    body: dict[str, Any] = {"prompt": prompts[0] if len(prompts) == 1 else prompts}
    body |= {"max_tokens": draw.randint(1, 48), "temperature": draw.choice([0, 1])}
    body["n"] = draw.choice([1, 1, 2, 3]) if body["temperature"] else 1
    if draw.random() < 0.2:
        body |= {"logprobs": 2, "echo": True}
    return body


def _read(answer: httpx.Response, key: str) -> str:
    """Return the status of an answer that is whole."""
    try:
        body = answer.json()
    except ValueError:
        raise Unanswered(f"{answer.status_code} with no JSON: {answer.text[:80]}") from None
    if answer.status_code == httpx.codes.OK and body.get(key):
        return "200"
    error = body.get("error")
    if not isinstance(error, dict) or not error.keys() >= {"message", "type", "param", "code"}:
        raise Unanswered(f"{answer.status_code} with {answer.text[:80]}")
    return str(answer.status_code)
