"""Bodies: bytes from a client become a request, or are refused."""

import asyncio
import re
from typing import Final, TypeVar, final

import msgspec
from starlette.requests import ClientDisconnect, Request

from alpage.serve.http.refusals import Refusal, invalid, too_large
from alpage.serve.http.settings import Settings

_Schema = TypeVar("_Schema", bound=msgspec.Struct)

# How msgspec says where something is wrong, and what.
_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<where>.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(
    r"Object (?P<how>contains unknown|missing required) field `(?P<name>.*)`"
)


@final
class Bodies:
    """Reads bodies.

    Args:
        settings: what they may take.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = settings.body_timeout_s

    async def read(self, request: Request, schema: type[_Schema]) -> _Schema:
        """Return a request's body.

        Raises:
            Refusal: it is too long or late, no JSON, or not of this schema.
        """
        kind = request.headers.get("content-type", "application/json")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, f"The body must be application/json, not '{kind}'.")
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._bytes(request)
        except TimeoutError:
            message = f"The body did not arrive within {self._timeout_s:g} s."
            raise Refusal(408, message) from None
        except ClientDisconnect:
            raise Refusal(400, "The client left before its request was complete.") from None
        return decoded(data, schema)

    async def _bytes(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise too_large(self._max_bytes)
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self._max_bytes:
                raise too_large(self._max_bytes)
        return bytes(data)


def decoded(data: bytes, schema: type[_Schema]) -> _Schema:
    """Return JSON as a value of a schema.

    Raises:
        Refusal: it is no JSON in UTF-8, holds what JSON cannot (NaN, halves of surrogate pairs), is
            nested too deep, or does not fit the schema.
    """
    try:
        return msgspec.json.decode(data, type=schema)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except RecursionError:
        raise invalid("The body is nested too deep.", None, "invalid_json") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        message = f"The body could not be read as JSON in UTF-8: {error}."
        raise invalid(message, None, "invalid_json") from None


def _misfit(text: str) -> Refusal:
    found = _PLACE.fullmatch(text)
    assert found is not None, "it matches everything"
    what, where = found["what"], found["where"]
    field = _FIELD.fullmatch(what)
    if field is None:
        message = f"Invalid value for '{where}': {what}." if where else f"{what}."
        return invalid(message, where, "invalid_type")
    path = f"{where}.{field['name']}" if where else field["name"]
    if field["how"] == "missing required":
        message = f"Missing required parameter: '{path}'."
        return invalid(message, path, "missing_required_parameter")
    return invalid(f"Unknown parameter: '{path}'.", path, "unknown_parameter")
