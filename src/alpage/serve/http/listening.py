"""Listening: a service at an address, until it is told to end."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import final

import uvicorn

from alpage.errors import InvalidValue
from alpage.serve.http.app import make_app
from alpage.serve.http.engine_client import EngineClient
from alpage.serve.http.service import Service

# What uvicorn leaves to answers that were told to end, before it cuts them off.
_GRACE_S = 5
_MAX_HEADER_BYTES = 16 * 1024
_IDLE_S = 75
_MAX_PORT = 65_535


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has an address and does not listen yet.

    Raises:
        InvalidValue: the address is taken, not this machine's, or none.
    """
    # The resolver would take such a port modulo 65,536.
    if not 0 <= port <= _MAX_PORT:
        raise InvalidValue(
            field="port",
            value=port,
            limit=f"must be between 0 and {_MAX_PORT:,}",
            remedy="Choose a port in that range, or 0 for any that is free",
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as stack:
            found = stack.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            stack.pop_all()
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise InvalidValue(
            field="host and port",
            value=f"{host}:{port}",
            limit="is taken" if is_taken else f"cannot be had: {error}",
            remedy="Choose another port" if is_taken else "Choose another address",
        ) from None
    return found


def listen(service: Service, at: socket.socket, notify: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; what is under way then has time to end.

    Args:
        service: what is served; its engine begins and ends here.
        at: where, from `bound`.
        notify: takes a line once requests are taken.

    Raises:
        RankLost: the engine was lost again and again.
    """
    host, port = at.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=int(service.settings.drain_s) + _GRACE_S,
    )
    started = f"Serving {service.settings.names[0]} at http://{shown}:{port} (Ctrl-C ends it)."
    server = _Server(config, service, lambda: notify(started))
    # uvicorn takes the signals and raises them again when it has ended; then they are over.
    usual = {kind: signal.signal(kind, _ignore) for kind in (signal.SIGTERM, signal.SIGINT)}
    service.engine.start()
    try:
        server.run(sockets=[at])
    finally:
        service.engine.stop()
        for kind, handler in usual.items():
            signal.signal(kind, handler)
    if service.engine.failure is not None:
        raise service.engine.failure


@final
class _Server(uvicorn.Server):
    """A uvicorn that lets the engine end what it has begun."""

    def __init__(
        self, config: uvicorn.Config, service: Service, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._say_started()

    async def on_tick(self, counter: int) -> bool:
        """Return whether it is time to end, a few times a second."""
        return await super().on_tick(counter) or self._service.engine.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end when the last one is answered, or its time is over."""
        draining = asyncio.create_task(_drain(self._service.engine, self._service.settings.drain_s))
        await super().shutdown(sockets)
        draining.cancel()


async def _drain(engine: EngineClient, deadline_s: float) -> None:
    engine.refuse_new()
    await asyncio.sleep(deadline_s)
    engine.refuse_all()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """What there was to do, uvicorn has done."""
