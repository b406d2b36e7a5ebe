"""Tools: what a model may call, what it must, and the form of its answer where it must."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide
from alpage.serve.http.guiding import lenient
from alpage.serve.http.refusals import invalid, unsupported
from alpage.serve.http.schema import ChatRequest, NamedChoice, Tool
from alpage.serve.http.tool_calls import CLOSE, OPEN

MAX_TOOLS: Final = 128
_MAX_CALLS: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStyle:
    """How a model writes calls.

    Attributes:
        begin: before the first.
        between: between two.
        end: behind the last.
        key: what arguments are called.
    """

    begin: str
    between: str
    end: str
    key: str


HERMES: Final = ToolStyle(
    begin=f"{OPEN}\n", between=f"\n{CLOSE}\n{OPEN}\n", end=f"\n{CLOSE}", key="arguments"
)
LLAMA: Final = ToolStyle(begin="", between="; ", end="", key="parameters")
LIST: Final = ToolStyle(begin="[", between=", ", end="]", key="arguments")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tooling:
    """The tools of a chat.

    Attributes:
        tools: those that may be called.
        must_call: whether an answer has to be a call.
        is_parallel: whether it may be several.
    """

    tools: Sequence[Tool]
    must_call: bool
    is_parallel: bool

    @property
    def names(self) -> frozenset[str]:
        """Names of the tools."""
        return frozenset(tool.function.name for tool in self.tools)

    @property
    def plain(self) -> list[Mapping[str, Any]]:
        """The tools as templates know them."""
        return [msgspec.to_builtins(tool) for tool in self.tools]

    def guide(self, style: ToolStyle, form: Guide | None) -> Guide | None:
        """Return the form of answers: calls where they must be; what is said may have its own.

        Raises:
            InvalidValue: the schemas are too much together.
        """
        if not self.must_call and form is None:
            return None
        rules = ["start: calls" if self.must_call else "start: calls | said"]
        more = f" ({_quoted(style.between)} call){{0,{_MAX_CALLS - 1}}}" if self.is_parallel else ""
        marks = [_quoted(mark) if mark else "" for mark in (style.begin, style.end)]
        rules.append(f"calls: {marks[0]} call{more} {marks[1]}")
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(self.tools))))
        for number, tool in enumerate(self.tools):
            name = json.dumps(tool.function.name)
            before = _quoted(f'{{"name": {name}, "{style.key}": ')
            rules.append(f'call_{number}: {before} arguments_{number} "}}"')
            rules.append(f"arguments_{number}: %json {_schema(tool)}")
        if form is not None and not self.must_call:
            rules.append(f"said: %json {form.source}")
        return Guide.grammar("\n".join(rules))


def tooling_of(asked: ChatRequest) -> Tooling | None:
    """Return the tools that a chat may call; None if it may not call any.

    Raises:
        Refusal: they make no sense.
    """
    tools: Sequence[Tool] = asked.tools or ()
    choice = asked.tool_choice
    _check(tools)
    if not tools:
        if isinstance(choice, NamedChoice) or choice == "required":
            raise invalid("'tool_choice' needs 'tools' to choose from.", "tool_choice")
        return None
    if choice == "none":
        return None
    if isinstance(choice, NamedChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            message = f"'tool_choice' names '{choice.function.name}', which is none of 'tools'."
            raise invalid(message, "tool_choice")
        return Tooling(tools=tools, must_call=True, is_parallel=False)
    is_parallel = asked.parallel_tool_calls is not False
    return Tooling(tools=tools, must_call=choice == "required", is_parallel=is_parallel)


def chat_guide(
    tooling: Tooling | None, style: ToolStyle, form: tuple[Guide | None, str]
) -> tuple[Guide | None, str]:
    """Return the form of a chat's answers, and the field that it comes from.

    Args:
        tooling: the tools, if there are any.
        style: how the model writes calls.
        form: what the answer is to be where it is no call, and the field that says so.

    Raises:
        Refusal: there cannot be such a form.
    """
    guide, param = form
    if tooling is None:
        return form
    if guide is not None and guide.kind != "json":
        raise unsupported(param, "that is not JSON cannot go together with 'tools'")
    try:
        return tooling.guide(style, guide), "tools" if guide is None else param
    except InvalidValue as error:
        raise invalid(str(error), "tools") from error


def check_beams(asked: ChatRequest, tooling: Tooling | None) -> None:
    """Refuse a call that must be in a search that knows no forms.

    Raises:
        Refusal: it is asked for.
    """
    if asked.use_beam_search and tooling is not None and tooling.must_call:
        raise unsupported("tool_choice", "cannot go together with 'use_beam_search'")


def _check(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise invalid(f"'tools' has {len(tools)} tools; {MAX_TOOLS} may be.", "tools")
    names = set[str]()
    for number, tool in enumerate(tools):
        function, param = tool.function, f"tools[{number}].function"
        if not _NAME.fullmatch(function.name):
            message = f"'{param}.name' must be 1 to 64 letters, digits, underscores, dots, dashes."
            raise invalid(message, f"{param}.name")
        if function.name in names:
            raise invalid(f"'{param}.name' is that of another tool.", f"{param}.name")
        names.add(function.name)
        try:
            Guide.json(function.parameters or {})
        except InvalidValue as error:
            raise invalid(str(error), f"{param}.parameters") from error


def _schema(tool: Tool) -> str:
    schema = {"type": "object"} | (tool.function.parameters or {})
    return json.dumps(schema if tool.function.strict else lenient(schema), ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
