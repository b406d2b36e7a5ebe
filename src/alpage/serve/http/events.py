"""Events: answers on their way to a client who may go away at any time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from alpage.serve.http.answers import Answer
from alpage.serve.http.refusals import Refusal
from alpage.serve.http.ticket import Ticket
from alpage.serve.http.visits import visit_of

EVENT_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that would wait for more are asked not to.
    (b"x-accel-buffering", b"no"),
]
_END: Final = b"data: [DONE]\n\n"
_encode: Final = msgspec.json.Encoder().encode
STILL_HERE: Final = b": still here\n\n"


@asynccontextmanager
async def waiting(ticket: Ticket, receive: Receive) -> AsyncIterator[None]:
    """Close a ticket when its client goes away, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ticket.close()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        ticket.close()


@final
class EventStream(Response):
    """An answer as server-sent events.

    Args:
        ticket: what the answer waits for.
        answer: its form.
        keep_alive_s: seconds of silence after which a comment is sent.
    """

    def __init__(self, ticket: Ticket, answer: Answer, keep_alive_s: float) -> None:
        super().__init__()
        self._ticket = ticket
        self._answer = answer
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes; before the engine has taken the request, it may still be refused."""
        async with waiting(self._ticket, receive):
            await self._ticket.accepted()
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
            try:
                await self._send_parts(send)
            except Refusal as refusal:
                visit_of(scope).code = refusal.code
                await send_part(send, event_of(refusal.body))
            await send_part(send, _END)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_parts(self, send: Callable[[Any], Awaitable[None]]) -> None:
        ticket, answer = self._ticket, self._answer
        first = self._events(answer.begin())
        if first:
            await send_part(send, first)
        while True:
            pieces = await ticket.take(self._keep_alive_s)
            if not pieces and ticket.is_finished:
                break
            events = self._events(part for piece in pieces for part in answer.parts(piece))
            if events or not pieces:
                await send_part(send, events or STILL_HERE)
        if answer.has_usage:
            await send_part(send, self._events([answer.last()]))

    def _events(self, parts: Iterable[msgspec.Struct]) -> bytes:
        return b"".join(event_of(_encode(part), self._answer.event_name(part)) for part in parts)


def event_of(data: bytes, name: str | None = None) -> bytes:
    """Return data as one event, which may have a name."""
    event = b"data: " + data + b"\n\n"
    return event if name is None else b"event: " + name.encode() + b"\n" + event


async def send_part(send: Callable[[Any], Awaitable[None]], data: bytes) -> None:
    """Send what is not the last of an answer."""
    await send({"type": "http.response.body", "body": data, "more_body": True})
