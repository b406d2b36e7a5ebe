"""OpenAPI: request bodies as the document at /openapi.json describes them."""

from typing import Any

import msgspec


def body_of(schema: type[msgspec.Struct]) -> dict[str, Any]:
    """Return a route's description of its body, with all that it refers to inside."""
    document = msgspec.json.schema(schema)
    definitions = document.get("$defs", {})
    described = _inlined(document, definitions)
    described.pop("$defs", None)
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": described}},
        }
    }


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}
