"""Guard: what every request passes first: it gets a name, and has to show a key."""

import hmac
import secrets
from collections.abc import Callable
from typing import Final, final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpage.serve.http.refusals import Refusal
from alpage.serve.http.visits import Visit, begin_visit

_UNKNOWN: Final = "invalid_api_key"
# What asks whether the server lives has no key, and a browser has none before it has the page.
_OPEN_PATHS: Final = frozenset({"/health", "/ready", "/"})
_OPEN_FOLDER: Final = "/page/"


@final
class Guard:
    """An ASGI application before another.

    Args:
        app: the other.
        keys: of which a request has to bring one; none: all may pass.
        ended: takes each visit when it is over.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], ended: Callable[[Visit], None]) -> None:
        self._app = app
        self._ended = ended
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = secrets.token_hex(8)
        visit = begin_visit(scope, name)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        path = scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        try:
            if is_open or self._is_known(scope):
                await self._app(scope, receive, send_named)
            else:
                visit.code = _UNKNOWN
                await _unknown().__call__(scope, receive, send_named)
        except Exception:
            # It is answered behind us.
            visit.status, visit.code = 500, "internal_error"
            raise
        finally:
            self._ended(visit)

    def _is_known(self, scope: Scope) -> bool:
        if not self._keys:
            return True
        headers = dict(scope["headers"])
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        # All keys are compared, each in a time that does not depend on where they differ.
        equal = [hmac.compare_digest(key, shown.strip()) for key in self._keys]
        return scheme.lower() == b"bearer" and any(equal)


def _unknown() -> Response:
    refusal = Refusal(
        401,
        "Incorrect API key, or none. Send the header 'Authorization: Bearer KEY'.",
        code=_UNKNOWN,
    )
    headers = {"WWW-Authenticate": "Bearer"}
    return Response(refusal.body, 401, headers, media_type="application/json")
