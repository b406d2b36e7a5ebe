"""Guard: what every request passes first: it gets a name, and has to show a key."""

import hmac
import secrets
from typing import Final, final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpage.serve.http.refusals import Refusal

# What asks whether the server lives has no key, and a browser has none before it has the page.
_OPEN_PATHS: Final = frozenset({"/health", "/ready", "/"})
_OPEN_FOLDER: Final = "/page/"


@final
class Guard:
    """An ASGI application before another.

    Args:
        app: the other.
        keys: of which a request has to bring one; none: all may pass.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = secrets.token_hex(8).encode()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        path = scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        if is_open or self._is_known(scope):
            await self._app(scope, receive, send_named)
            return
        await _unknown().__call__(scope, receive, send_named)

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
        code="invalid_api_key",
    )
    headers = {"WWW-Authenticate": "Bearer"}
    return Response(refusal.body, 401, headers, media_type="application/json")
