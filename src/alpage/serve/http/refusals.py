"""Refusals: errors as OpenAI's clients know them: a status, and a body of four fields."""

from collections.abc import Mapping
from typing import Final, final

import msgspec

from alpage.errors import (
    AlpageError,
    InvalidValue,
    ModelNotFound,
    OutOfMemory,
    RankLost,
    Unsupported,
)

_REQUEST: Final = "invalid_request_error"
_SERVER: Final = "server_error"
RESTARTING: Final = "engine_restarting"
_SOON: Final[Mapping[str, str]] = {"Retry-After": "10"}
# Where the engine's word for a thing is not the request's.
_PARAMS: Final[Mapping[str, str | None]] = {
    "kv_memory": None,
    "n, best_of or beam_width": "n",
    "prompt and max_tokens": "prompt",
    "text": "prompt",
    "has_embedding": "input",
    "token id": "prompt",
    "token_ids": "tokens",
}


@final
class ErrorDetail(msgspec.Struct):
    """What went wrong, for people and for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


@final
class ErrorBody(msgspec.Struct):
    """The body of every answer that is no success."""

    error: ErrorDetail


@final
class PlainRefusal(msgspec.Struct, frozen=True, array_like=True):
    """A refusal as data."""

    status: int
    detail: ErrorDetail
    headers: Mapping[str, str]

    @property
    def refusal(self) -> "Refusal":
        """The refusal once more."""
        detail = self.detail
        return Refusal(
            self.status,
            detail.message,
            kind=detail.type,
            param=detail.param,
            code=detail.code,
            headers=self.headers,
        )


@final
class Refusal(Exception):
    """A request that gets no answer, with what it gets instead.

    Args:
        status: of HTTP.
        message: why, as sentences.
        kind: OpenAI's word for the sort of error.
        param: the field of the request that is wrong.
        code: a word that programs can compare.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.detail = ErrorDetail(message, kind, param, code)

    @property
    def code(self) -> str:
        """The word for it, that of its sort where it has no other."""
        return self.detail.code or self.detail.type

    @property
    def plain(self) -> PlainRefusal:
        """The refusal as data."""
        return PlainRefusal(self.status, self.detail, self.headers)

    @property
    def body(self) -> bytes:
        """The error as JSON."""
        return msgspec.json.encode(ErrorBody(self.detail))


def refusal_of(error: AlpageError) -> Refusal:
    """Return what a client is told of an error that its request alone has met."""
    param = _PARAMS.get(error.field, error.field)
    if isinstance(error, ModelNotFound):
        return Refusal(404, str(error), param=param, code=error.code)
    if isinstance(error, InvalidValue | Unsupported | OutOfMemory):
        return Refusal(400, str(error), param=param, code=error.code)
    if isinstance(error, RankLost):
        return lost()
    return Refusal(500, str(error), kind=_SERVER, param=param, code=error.code)


def invalid(message: str, param: str | None, code: str | None = "invalid_value") -> Refusal:
    """Return the refusal of a request that asks for what cannot be."""
    return Refusal(400, message, param=param, code=code)


def unsupported(param: str, limit: str) -> Refusal:
    """Return the refusal of a field that OpenAI knows and this server does not."""
    return invalid(f"'{param}' {limit}.", param, "unsupported_parameter")


def unknown_model(name: str) -> Refusal:
    """Return the refusal of a model that is not served."""
    message = f"The model '{name}' does not exist. See /v1/models for what is served."
    return Refusal(404, message, param="model", code="model_not_found")


def too_large(max_bytes: int) -> Refusal:
    """Return the refusal of a body that is too long."""
    message = f"The body is longer than {max_bytes} bytes, the limit. Send less at a time."
    return Refusal(413, message, code="request_too_large")


def overloaded(num_open: int, retry_after_s: int) -> Refusal:
    """Return the refusal of a request for which there is no room in the queue."""
    return Refusal(
        429,
        f"{num_open} continuations are running or waiting, as many as may. Try again later.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after_s)},
    )


def failed() -> Refusal:
    """Return what is said of a failure of ours, of which a client can make nothing."""
    message = "The server had an error while it processed this request. Its log says more."
    return Refusal(500, message, kind=_SERVER, code="internal_error")


def lost() -> Refusal:
    """Return what is said once there is nothing left that computes."""
    message = "The engine is lost. The server has to be started again."
    return Refusal(503, message, kind=_SERVER, code="engine_lost", headers={"Retry-After": "30"})


def restarting() -> Refusal:
    """Return what is said while the engine is started again."""
    message = "The engine was lost and is being started again. Try again later."
    return Refusal(503, message, kind=_SERVER, code=RESTARTING, headers=_SOON)


def interrupted(*, is_last: bool) -> Refusal:
    """Return what is said of a request that was lost with its engine.

    Args:
        is_last: whether it was given to a second engine, and that was lost too.
    """
    if is_last:
        message = "The engine was lost twice while it processed this request."
        return Refusal(500, message, kind=_SERVER, code="engine_lost")
    message = "The engine was lost while it processed this request. Send it once more."
    return Refusal(503, message, kind=_SERVER, code="engine_lost", headers=_SOON)


def draining() -> Refusal:
    """Return what is said while the server ends."""
    message = "The server is shutting down. Try again later."
    return Refusal(503, message, kind=_SERVER, code="shutting_down", headers=_SOON)
