"""Responding: how a request for a response becomes a chat, which it is but for its names."""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Final, Literal, TypeVar

from alpage.errors import AlpageError
from alpage.serve.http.conversation import arguments_of
from alpage.serve.http.refusals import Refusal, invalid, refusal_of, unsupported
from alpage.serve.http.response_schema import (
    FunctionChoice,
    FunctionChoices,
    FunctionTool,
    InputItem,
    InputPart,
    ResponseRequest,
    TextFormat,
)
from alpage.serve.http.schema import (
    ChatMessage,
    ChatRequest,
    FunctionCall,
    FunctionDefinition,
    FunctionName,
    JsonSchemaFormat,
    NamedChoice,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)

_Value = TypeVar("_Value")

# What a chat's fields are called here.
CHAT_NAMES: Final[Mapping[str, str]] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}
_SHARED: Final = (
    *("model", "temperature", "top_p", "parallel_tool_calls", "stream", "seed", "top_k", "min_p"),
    *("repetition_penalty", "ignore_eos", "priority", "cache_salt"),
)
# Functions lie a level higher here.
_TOOL: Final = ("].function", "]")


def chat_of(asked: ResponseRequest) -> ChatRequest:
    """Return the chat that a request for a response is.

    Raises:
        Refusal: it asks for what this server does not keep, or an item lacks something.
    """
    _check_stateless(asked)
    text_format = None if asked.text is None else asked.text.format
    return ChatRequest(
        messages=_messages(asked),
        max_completion_tokens=asked.max_output_tokens,
        response_format=None if text_format is None else _format(text_format),
        tools=None if asked.tools is None else [_tool(tool) for tool in asked.tools],
        tool_choice=_choice(asked.tool_choice),
        **{name: getattr(asked, name) for name in _SHARED},
    )


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals call fields, and functions of tools, as the request has them.

    Args:
        names: by those that the refusals have.
    """
    try:
        yield
    except (Refusal, AlpageError) as error:
        refusal = error if isinstance(error, Refusal) else refusal_of(error)
        detail = refusal.detail
        if detail.param is not None:
            detail.param = names.get(detail.param, detail.param).replace(*_TOOL)
        for chats, ours in names.items():
            detail.message = detail.message.replace(f"'{chats}'", f"'{ours}'")
        detail.message = detail.message.replace(*_TOOL)
        raise refusal from error


def _check_stateless(asked: ResponseRequest) -> None:
    if asked.previous_response_id is not None:
        limit = "is not supported: no response is kept; send the conversation as 'input'"
        raise unsupported("previous_response_id", limit)
    if asked.store:
        raise unsupported("store", "is not supported: no response is kept")
    if asked.background:
        raise unsupported("background", "is not supported: no response is kept")
    if asked.truncation == "auto":
        raise unsupported("truncation", "must be 'disabled': what is too long is refused")


def _messages(asked: ResponseRequest) -> list[ChatMessage]:
    found: list[ChatMessage] = []
    if asked.instructions is not None:
        found.append(ChatMessage(role="system", content=asked.instructions))
    if isinstance(asked.input, str):
        return [*found, ChatMessage(role="user", content=asked.input)]
    if not asked.input:
        raise invalid("'input' must hold at least one item.", "input")
    called = set[str]()
    for number, item in enumerate(asked.input):
        path = f"input[{number}]"
        if item.type == "message":
            if item.role is None:
                raise _missing(f"{path}.role")
            content = _content(item.content, f"{path}.content")
            found.append(ChatMessage(role=item.role, content=content))
        elif item.type == "function_call":
            call = _call(item, path)
            called.add(call.id)
            # What was said before a call, and calls side by side, are one message.
            if not found or found[-1].role != "assistant":
                found.append(ChatMessage(role="assistant"))
            calls = found[-1].tool_calls = found[-1].tool_calls or []
            calls.append(call)
        else:
            found.append(_result(item, path, called))
    return found


def _call(item: InputItem, path: str) -> ToolCall:
    arguments = _needed(item.arguments, f"{path}.arguments")
    arguments_of(arguments, f"{path}.arguments")
    function = FunctionCall(_needed(item.name, f"{path}.name"), arguments)
    return ToolCall(_needed(item.call_id, f"{path}.call_id"), function)


def _result(item: InputItem, path: str, called: Set[str]) -> ChatMessage:
    call_id = _needed(item.call_id, f"{path}.call_id")
    if call_id not in called:
        message = f"'{path}.call_id' must be the 'call_id' of a function call before."
        raise invalid(message, f"{path}.call_id")
    content = _content(item.output, f"{path}.output")
    return ChatMessage(role="tool", content=content, tool_call_id=call_id)


def _content(content: str | list[InputPart] | None, path: str) -> str | list[TextPart]:
    if content is None:
        raise _missing(path)
    return content if isinstance(content, str) else [TextPart(part.text) for part in content]


def _format(text_format: TextFormat) -> ResponseFormat:
    wanted = None
    if text_format.type == "json_schema":
        wanted = JsonSchemaFormat(
            name=_needed(text_format.name, "text.format.name"),
            schema=_needed(text_format.schema, "text.format.schema"),
            strict=text_format.strict,
        )
    return ResponseFormat(text_format.type, wanted)


def _tool(tool: FunctionTool) -> Tool:
    function = FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict)
    return Tool(function=function, type="function")


def _choice(
    choice: FunctionChoices | None,
) -> NamedChoice | Literal["none", "auto", "required"] | None:
    if isinstance(choice, FunctionChoice):
        return NamedChoice(function=FunctionName(choice.name), type="function")
    return choice


def _needed(value: _Value | None, path: str) -> _Value:
    if value is None:
        raise _missing(path)
    return value


def _missing(path: str) -> Refusal:
    message = f"Missing required parameter: '{path}'."
    return invalid(message, path, "missing_required_parameter")
