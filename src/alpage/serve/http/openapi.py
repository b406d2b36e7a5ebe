"""OpenAPI: bodies, answers and errors of routes as the document at /openapi.json describes them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from alpage.serve.http.refusals import ErrorBody

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
# What whoever sends a body may meet, besides having no key.
_BODY_ERRORS: Final = (400, 404, 408, 413, 415)
_ENGINE_ERRORS: Final = (429, 500, 503)


def said_by(
    reply: type[msgspec.Struct] | None = None,
    *,
    media_type: str | None = None,
    errors: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return a route's description of what it answers.

    Args:
        reply: the form of its JSON, if it is JSON.
        media_type: of an answer that is none; None: without a reply, it has no body.
        errors: statuses of its own; those of keys and of our failures every route has.
    """
    content: dict[str, Any] = {}
    if reply is not None:
        content[_JSON] = {"schema": _schema(reply)}
    if media_type is not None:
        content[media_type] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"content": content}} if content else {}
    for status in sorted({401, 500, *errors}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {_JSON: {"schema": _schema(ErrorBody)}},
        }
    return {"responses": responses}


def asked_by(
    body: type[msgspec.Struct],
    reply: type[msgspec.Struct],
    *,
    has_engine: bool = False,
    is_streamed: bool = False,
) -> dict[str, Any]:
    """Return a route's description of its body, and of what it answers.

    Args:
        body: its form.
        reply: that of the answer.
        has_engine: whether it is the engine that answers.
        is_streamed: whether the answer may also come as events.
    """
    errors = _BODY_ERRORS + (_ENGINE_ERRORS if has_engine else ())
    return {
        "requestBody": {"required": True, "content": {_JSON: {"schema": _schema(body)}}},
        **said_by(reply, media_type=_EVENTS if is_streamed else None, errors=errors),
    }


def named_by(name: str) -> dict[str, Any]:
    """Return a route's description of a part of its path."""
    schema = {"type": "string"}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema}]}


def _schema(kind: type[msgspec.Struct]) -> Any:
    """Return the schema of a type, with all that it refers to inside."""
    document = msgspec.json.schema(kind)
    return _inlined(document, document.get("$defs", {}))


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}
