"""Tools: what a model may call, and what it must."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide
from alpage.serve.http.refusals import invalid, unsupported
from alpage.serve.http.schema import ChatRequest, NamedChoice, Tool
from alpage.serve.http.tool_calls import NAME

MAX_TOOLS: Final = 128
_NAME: Final = re.compile(NAME)


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
    def is_free(self) -> bool:
        """Whether nobody has asked for calls that fit their schemas for certain."""
        return not self.must_call and not any(tool.function.strict for tool in self.tools)

    @property
    def plain(self) -> list[Mapping[str, Any]]:
        """The tools as templates know them."""
        return [msgspec.to_builtins(tool) for tool in self.tools]


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
