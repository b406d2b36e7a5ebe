"""Live: how the engine does, sent to whoever looks on, a few times a second."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, final

import msgspec
from fastapi import FastAPI
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from alpage.serve.http.engine_client import EngineClient
from alpage.serve.http.events import EVENT_HEADERS, STILL_HERE, event_of, send_part
from alpage.serve.http.openapi import said_by
from alpage.serve.http.refusals import Refusal
from alpage.serve.http.reports import LIVE_PERIOD_S
from alpage.serve.http.service import Service
from alpage.serve.live import LiveMemory, LiveRequest, Share, Snapshot, changes


@final
class LiveReply(msgspec.Struct, kw_only=True):
    """A moment, or what is new in it; see `Snapshot`.

    Attributes:
        is_whole: whether all pages that are not in `cells` are free and empty; else they are as
            they were.
        cells: pages as runs of six numbers: the first, how many, and for each of them the first
            request that holds it, how many sequences do, tokens in it, whether it is cached.
        shares: which pages several requests hold; left out if as before.
        evicted: pages that were evicted since.
        copied: pages that were copied to since.
    """

    is_whole: bool
    at_s: float
    page_size: int
    num_running: int
    num_waiting: int
    num_preemptions: int
    num_steps: int
    num_computed_tokens: int
    num_drawn_tokens: int
    memories: tuple[LiveMemory, ...]
    requests: tuple[LiveRequest, ...]
    cells: Sequence[int]
    shares: tuple[Share, ...] | UnsetType = UNSET
    evicted: Sequence[int] = ()
    copied: Sequence[int] = ()


def reply_of(before: Snapshot | None, now: Snapshot) -> LiveReply:
    """Return what somebody has to be told who knows how it was before, or nothing."""
    # A fleet may have lost a replica meanwhile: then rows are other pages.
    if before is not None and _places(before) != _places(now):
        before = None
    is_whole = before is None
    has_new_shares = before is None or before.shares != now.shares
    return LiveReply(
        is_whole=is_whole,
        at_s=now.at_s,
        page_size=now.page_size,
        num_running=now.num_running,
        num_waiting=now.num_waiting,
        num_preemptions=now.num_preemptions,
        num_steps=now.num_steps,
        num_computed_tokens=now.num_computed_tokens,
        num_drawn_tokens=now.num_drawn_tokens,
        memories=now.memories,
        requests=now.requests,
        cells=changes(None if before is None else before.cells_P4, now.cells_P4),
        shares=now.shares if has_new_shares else UNSET,
        evicted=_since(before, now, lambda memory: memory.num_evicted, now.evicted),
        copied=_since(before, now, lambda memory: memory.num_copied, now.copied),
    )


@final
class LiveStream(Response):
    """What is new in the engine, as server-sent events, until the client leaves or the server ends.

    Args:
        engine: that is looked at.
        keep_alive_s: seconds of silence, as in a long step, after which a comment is sent.
    """

    def __init__(self, engine: EngineClient, keep_alive_s: float) -> None:
        super().__init__()
        self._engine = engine
        self._keep_alive_s = keep_alive_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the first moment whole, and of each further one what is new."""
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        leaving = asyncio.create_task(_left(receive))
        looking: asyncio.Future[None] = asyncio.ensure_future(self._send_moments(send))
        try:
            await asyncio.wait({leaving, looking}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            looking.cancel()

    async def _send_moments(self, send: Callable[[Any], Awaitable[None]]) -> None:
        before: Snapshot | None = None
        while self._engine.state != "draining":
            asked = asyncio.ensure_future(self._engine.glance())
            while not (await asyncio.wait({asked}, timeout=self._keep_alive_s))[0]:
                await send_part(send, STILL_HERE)
            try:
                now = asked.result()
            except Refusal as refusal:
                await send_part(send, event_of(refusal.body))
                return
            await send_part(send, event_of(msgspec.json.encode(reply_of(before, now))))
            before = now
            await asyncio.sleep(LIVE_PERIOD_S)


def add_live(app: FastAPI, service: Service) -> None:
    """Add the routes that show the engine."""
    engine = service.engine

    # Whoever tries all routes of the document would wait for the end of this one.
    @app.get("/live", include_in_schema=False)
    async def live() -> Response:
        """Show the engine as it goes, as server-sent events."""
        return LiveStream(engine, service.settings.keep_alive_s)

    @app.get("/live/snapshot", openapi_extra=said_by(LiveReply, errors=(503,)))
    async def live_snapshot() -> Response:
        """Show the engine as it is."""
        reply = reply_of(None, await engine.moment())
        return Response(msgspec.json.encode(reply), media_type="application/json")


def _places(snapshot: Snapshot) -> list[tuple[int, int, int]]:
    return [(memory.replica, memory.home, memory.num_pages) for memory in snapshot.memories]


def _since(
    before: Snapshot | None,
    now: Snapshot,
    count: Callable[[LiveMemory], int],
    lately: Sequence[Sequence[int]],
) -> list[int]:
    """Return of the pages to which something happened lately those that are new."""
    if before is None:
        return []
    found: list[int] = []
    for old, new, pages in zip(before.memories, now.memories, lately, strict=True):
        num_new = min(len(pages), count(new) - count(old))
        found += pages[len(pages) - num_new :]
    return found


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
