"""Tool forms: what an answer with tools may look like, as a grammar.

Where a call must be made, the answer is calls, in the model's own style. Where one may be made, the
answer is a text in which a call, once it has begun and named its tool, has to be a call to the end:
its arguments fit the tool's schema. What begins as one is what `tool_calls.py` takes for one.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide
from alpage.serve.http.guiding import lenient
from alpage.serve.http.refusals import invalid, unsupported
from alpage.serve.http.schema import Tool
from alpage.serve.http.tool_calls import CLOSE, MARKS, OPEN, SPACE, opening
from alpage.serve.http.tools import Tooling

_MAX_CALLS: Final = 16
# As regular expressions.
_CLOSE: Final = CLOSE.replace("/", r"\/")
_MARKS: Final = "|".join(map(re.escape, MARKS))


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


def tool_guide(
    tooling: Tooling | None,
    style: ToolStyle,
    form: tuple[Guide | None, str],
    mark_ids: Collection[int] = (),
) -> tuple[Guide | None, str]:
    """Return the form of a chat's answers, and the field that it comes from.

    Args:
        tooling: the tools, if there are any.
        style: how the model writes calls.
        form: what the answer is to be where it is no call, and the field that says so.
        mark_ids: tokens that stand before calls and are no text.

    Raises:
        Refusal: there cannot be such a form.
    """
    guide, param = form
    if tooling is None:
        return form
    if guide is not None and guide.kind != "json":
        raise unsupported(param, "that is not JSON cannot go together with 'tools'")
    if guide is None and not tooling.must_call:
        rules = _free_rules(tooling, mark_ids)
    else:
        rules = _bound_rules(tooling, style, guide)
    try:
        return Guide.grammar("\n".join(rules)), "tools" if guide is None else param
    except InvalidValue as error:
        raise invalid(str(error), "tools") from error


def _bound_rules(tooling: Tooling, style: ToolStyle, form: Guide | None) -> list[str]:
    """Return a grammar of calls, or of what has a form of its own where none must be made."""
    has_said = form is not None and not tooling.must_call
    rules = ["start: calls | said" if has_said else "start: calls"]
    more = f" ({_quoted(style.between)} call){{0,{_MAX_CALLS - 1}}}" if tooling.is_parallel else ""
    marks = [_quoted(mark) if mark else "" for mark in (style.begin, style.end)]
    rules.append(f"calls: {marks[0]} call{more} {marks[1]}")
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tooling.tools))))
    for number, tool in enumerate(tooling.tools):
        name = json.dumps(tool.function.name)
        before = _quoted(f'{{"name": {name}, "{style.key}": ')
        rules.append(f'call_{number}: {before} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {_schema(tool)}")
    if has_said:
        assert form is not None
        rules.append(f"said: %json {form.source}")
    return rules


def _free_rules(tooling: Tooling, mark_ids: Collection[int]) -> list[str]:
    """Return a grammar of any text in which calls are calls to the end.

    A lazy rule is over at its first match: what a call begins with is never a part of a text.
    """
    numbers = range(len(tooling.tools))
    mark = f"<[{','.join(map(str, sorted(mark_ids)))}]>? " if mark_ids else ""
    text = "tagged* SAID | bare next* END" if tooling.is_parallel else "SAID | tagged | bare END"
    rules = [
        f"start: {mark}({text})",
        "SAID: /(?s:.*)/",
        f"SPACE: /{SPACE}/",
        f"CLOSE: /{SPACE}{_CLOSE}/",
        rf"END: /{SPACE}\]?/",
        "tagged: (" + " | ".join(f"tagged_{i} rest_{i}" for i in numbers) + ") CLOSE",
        "bare: " + " | ".join(f"bare_{i} rest_{i}" for i in numbers),
    ]
    if tooling.is_parallel:
        rules.append("next: " + " | ".join(f"NEXT_{i} rest_{i}" for i in numbers))
    for number, tool in enumerate(tooling.tools):
        begin = opening(re.escape(tool.function.name))
        rules += [
            f"tagged_{number}[lazy]: /(?s:.*){OPEN}{SPACE}{begin}/",
            rf"bare_{number}[lazy]: /{SPACE}(({_MARKS}){SPACE})?(\[{SPACE})?{begin}/",
            f'rest_{number}: SPACE arguments_{number} SPACE "}}"',
            f"arguments_{number}: %json {_schema(tool)}",
        ]
        if tooling.is_parallel:
            rules.append(rf"NEXT_{number}: /[ \t\r\n;,]{{0,32}}{begin}/")
    return rules


def _schema(tool: Tool) -> str:
    schema = {"type": "object"} | (tool.function.parameters or {})
    return json.dumps(schema if tool.function.strict else lenient(schema), ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
