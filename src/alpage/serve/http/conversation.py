"""Conversation: messages as chat templates know them, calls of tools and their results among them.

A model whose template knows no tools is told of them in words, and reads calls and results in the
same words.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alpage.serve.guide import MAX_NESTING, is_deeper
from alpage.serve.http.refusals import invalid
from alpage.serve.http.schema import ChatMessage, ToolCall
from alpage.serve.http.tool_calls import CLOSE, OPEN

_INTRODUCTION: Final = f"""You can call functions. These are known, each as JSON:

%s

To call one, write nothing but its name and its arguments as JSON, between marks:

{OPEN}
{{"name": "...", "arguments": {{...}}}}
{CLOSE}

Write one such block for each call. You get each result between <tool_response> and \
</tool_response>. Call a function only where it helps."""


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return the messages of a conversation as plain tables.

    Raises:
        Refusal: one is malformed, or a result has no call.
    """
    called: dict[str, str] = {}
    plain = []
    for number, message in enumerate(messages):
        entry = _plain(number, message)
        if message.tool_calls:
            if message.role != "assistant":
                raise invalid("Only the assistant calls tools.", f"messages[{number}].tool_calls")
            entry["tool_calls"] = [
                _plain_call(call, f"messages[{number}].tool_calls[{place}]")
                for place, call in enumerate(message.tool_calls)
            ]
            called |= {call.id: call.function.name for call in message.tool_calls}
        if message.role == "tool":
            if message.tool_call_id not in called:
                path = f"messages[{number}].tool_call_id"
                raise invalid(f"'{path}' must be the id of a call in a message before.", path)
            entry["tool_call_id"] = message.tool_call_id
            entry["name"] = called[message.tool_call_id]
        plain.append(entry)
    return plain


def told(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[Mapping[str, Any]]:
    """Return a conversation in which tools, calls and results are words."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if found and found[-1].get("is_result"):
                found[-1]["content"] += "\n" + text
            else:
                found.append({"role": "user", "content": text, "is_result": True})
            continue
        calls = [f"{OPEN}\n{_call_text(call)}\n{CLOSE}" for call in message.get("tool_calls", ())]
        said = [message["content"]] if message["content"] else []
        others = {key: value for key, value in message.items() if key != "tool_calls"}
        found.append(others | {"content": "\n".join([*said, *calls])})
    if tools:
        words = _INTRODUCTION % "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
        if found and found[0]["role"] == "system":
            found[0] = found[0] | {"content": f"{found[0]['content']}\n\n{words}"}
        else:
            found.insert(0, {"role": "system", "content": words})
    return [{k: v for k, v in message.items() if k != "is_result"} for message in found]


def arguments_of(text: str, path: str) -> dict[str, Any]:
    """Return the arguments of a call.

    Raises:
        Refusal: they are no JSON object.
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or is_deeper(arguments, MAX_NESTING):
        limit = f"must be a JSON object as text, nested {MAX_NESTING} deep at most"
        raise invalid(f"'{path}' {limit}.", path)
    return arguments


def _plain(number: int, message: ChatMessage) -> dict[str, Any]:
    content = message.content
    if content is None and message.role != "assistant":
        path = f"messages[{number}].content"
        raise invalid(f"'{path}' must be a text or a list of parts.", path)
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": content or ""} | named


def _plain_call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = arguments_of(call.function.arguments, f"{path}.function.arguments")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_text(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"], ensure_ascii=False)
