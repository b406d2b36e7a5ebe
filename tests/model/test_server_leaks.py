"""What a server keeps of requests that are over: nothing, however they ended."""

import asyncio
import gc
import json
from collections import Counter

import httpx
import pytest

from alpage import LLM
from alpage.serve.http import make_app
from tiny_llama import make_tiny_llama
from tiny_server import DEADLINE_S, NAME, scope_of, service_of

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
IDS = list(range(10, 50))
NUM_EACH = 8
PATIENCE_S = 0.02
IDLE = f'alpage_kv_pages_held{{model="{NAME}"}} 0.0'
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORM = {"structured_outputs": {"regex": "[a-z]{3,9}"}}
SHORT = {"max_tokens": 6}
PROMPT = SHORT | {"prompt": IDS}

# What is asked for, and the status of the answer; None: the client leaves without one.
REQUESTS = {
    "whole": (COMPLETIONS, PROMPT, 200),
    "several": (COMPLETIONS, SHORT | {"prompt": [IDS, IDS[:9]], "n": 2, "logprobs": 1}, 200),
    "streamed": (COMPLETIONS, PROMPT | {"stream": True}, 200),
    "beams": (COMPLETIONS, PROMPT | {"use_beam_search": True, "n": 2}, 200),
    "biased": (COMPLETIONS, PROMPT | {"logit_bias": {"20": 1.0}, "presence_penalty": 1.0}, 200),
    "chat": (CHATS, SHORT | {"messages": MESSAGES}, 200),
    "form": (COMPLETIONS, PROMPT | FORM, 200),
    "tool": (
        CHATS,
        SHORT | {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"},
        200,
    ),
    "left": (COMPLETIONS, PROMPT | {"max_tokens": 60}, None),
    "left prompt": (COMPLETIONS, {"prompt": IDS * 20}, None),
    "left stream": (COMPLETIONS, PROMPT | {"max_tokens": 60, "stream": True}, None),
    "left form": (COMPLETIONS, PROMPT | FORM | {"stream": True}, None),
    "no form": (COMPLETIONS, PROMPT | {"structured_outputs": {"regex": "["}}, 400),
    "too long": (COMPLETIONS, PROMPT | {"max_tokens": 10**6, "stream": True}, 400),
    "unknown field": (COMPLETIONS, PROMPT | {"unheard_of": 1}, 400),
    "nowhere": ("/nowhere", {}, 404),
}


async def leave(app, path, body):
    """Ask, and be gone before the answer is there."""
    parts = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        if parts:
            return parts.pop()
        await asyncio.sleep(PATIENCE_S)
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    await app(scope_of(path), receive, send)


async def ask_all(app):
    """Send every request, all kinds at a time."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:

        async def ask(name):
            path, body, status = REQUESTS[name]
            if status is None:
                await leave(app, path, body)
                return
            answer = await client.post(path, json=body, timeout=DEADLINE_S)
            assert answer.status_code == status, answer.text

        for _ in range(NUM_EACH):
            await asyncio.gather(*map(ask, REQUESTS))
        while IDLE not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)


def num_objects():
    """Return how many there are of each type."""
    gc.collect()
    return Counter(
        f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
    )


@pytest.mark.slow
def test_nothing_is_kept_of_requests_that_are_over(tmp_path):
    make_tiny_llama(tmp_path, max_position_embeddings=1024)
    # A pool that is soon full of prefixes.
    llm = LLM(
        tmp_path,
        kv_memory="512KiB",
        dtype="float32",
        device="cpu",
        max_num_seqs=16,
        max_num_batched_tokens=64,
    )
    with service_of(llm) as service:
        app = make_app(service)
        levels = []
        for _ in range(4):
            asyncio.run(ask_all(app))
            levels.append(num_objects())
        engine = llm.engine.engines[0]
        assert not service.engine._link.core._entries
        assert not service.engine._tickets
        assert not service.engine._link.core.tallies._admitted_s
        assert not engine._requests
        assert not engine.runner._rules
        assert len(engine.scheduler._free_slots) == 16
    # What is made once, is there after the second round.
    grown = {name: n - levels[1][name] for name, n in levels[-1].items()}
    leaked = {name: n for name, n in grown.items() if n >= NUM_EACH}
    assert not leaked
