"""Tool calls: found in a text as it comes, in the forms in which models write them.

`<tool_call>{...}</tool_call>` may stand anywhere; an object or a list of objects is a call only at
the beginning, bare or behind the mark of a model that has one. An object is a call if it names a
tool that was given. Every character is looked at once, whatever comes.

Where the text is held to a form (`tool_forms.py`), what begins as a call is one, and its arguments
are told as they come; else it is a call once it is complete.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias, final

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
MARKS: Final = ("[TOOL_CALLS]", "<|python_tag|>")
_KEYS: Final = frozenset({"name", "arguments", "parameters", "id", "type"})
# Regular expressions that Python and Rust read alike. Without a bound space would go on for ever.
SPACE: Final = r"[ \t\r\n]{0,32}"
NAME: Final = r"[A-Za-z0-9_.-]{1,64}"


def opening(name: str) -> str:
    """Return what a call begins with, up to its arguments, as a regular expression."""
    parts = (r"\{", '"name"', ":", f'"{name}"', ",", '"(?:arguments|parameters)"', ":")
    return SPACE.join(parts)


_BEGUN: Final = re.compile(rf"{SPACE}(\[?){SPACE}{opening(f'({NAME})')}{SPACE}(?=\{{)")


@final
@dataclass(frozen=True, slots=True)
class Call:
    """A call: `arguments` is a JSON object as text, or its beginning, of which more comes."""

    name: str
    arguments: str


@final
@dataclass(frozen=True, slots=True)
class More:
    """What comes to the arguments of the last call."""

    arguments: str


Found: TypeAlias = str | Call | More


@final
class _Value:
    """Finds where a JSON object or list ends that begins at a place of a growing text."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._place = start
        self._depth = 0
        self._is_text = False
        self._is_escaped = False

    def end(self, text: str) -> int | None:
        """Return the place behind it, or where it cannot begin; None if it goes on."""
        for place in range(self._place, len(text)):
            character = text[place]
            if not self._depth and character not in "{[":
                if not character.isspace():
                    return place
            elif self._is_text:
                self._is_text = self._is_escaped or character != '"'
                self._is_escaped = not self._is_escaped and character == "\\"
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        self._place = len(text)
        return None

    def moved(self, num_characters: int) -> None:
        """Let the text have lost so many characters at its beginning, all of them seen."""
        self._place -= num_characters


_Mode: TypeAlias = Literal[
    "begin", "text", "tagged", "bare", "arguments", "called", "closing", "between"
]


@final
class ToolReader:
    """Parts a text into what is said and what is called.

    Args:
        names: of the tools.
        is_held: whether the text is held to a form in which what begins as a call is one.
    """

    def __init__(self, names: Collection[str], *, is_held: bool = False) -> None:
        self.num_calls = 0
        self._names = names
        self._is_held = is_held
        self._mode: _Mode = "begin"
        # That comes behind the call which is being read.
        self._next: _Mode = "between"
        self._is_list = False
        # What nothing was said of yet.
        self._text = ""
        self._value: _Value | None = None

    def push(self, text: str) -> list[Found]:
        """Take what came; return what is certain by now."""
        self._text += text
        found: list[Found] = []
        while True:
            length, mode = len(self._text), self._mode
            found += self._advance()
            if (len(self._text), self._mode) == (length, mode):
                return found

    def finish(self) -> list[Found]:
        """Return the rest."""
        text, self._text = self._text, ""
        return [text] if text and not (self.num_calls and text.isspace()) else []

    def _advance(self) -> Iterator[Found]:
        match self._mode:
            case "begin":
                self._begin()
            case "text":
                yield from self._say()
            case "tagged" | "bare":
                yield from self._read()
            case "arguments":
                yield from self._read_on()
            case "called":
                self._end_call()
            case "closing":
                self._close()
            case "between":
                self._go_on()

    def _begin(self) -> None:
        rest = self._text.lstrip()
        mark = next((mark for mark in MARKS if rest.startswith(mark)), "")
        if not rest or (not mark and any(mark.startswith(rest) for mark in MARKS)):
            return
        behind = rest[len(mark) :].lstrip()
        if behind:
            self._enter("bare" if behind[0] in "{[" else "text", len(self._text) - len(behind))

    def _enter(self, mode: _Mode, start: int) -> None:
        self._mode = mode
        self._value = _Value(start) if mode in ("tagged", "bare", "arguments") else None

    def _say(self) -> Iterator[str]:
        place = self._text.find(OPEN)
        is_tagged = place >= 0
        if not is_tagged:
            place = len(self._text) - _overlap(self._text, OPEN)
        # Space before a call is no part of what is said.
        said = self._text[:place].rstrip()
        self._text = self._text[place:] if is_tagged else self._text[len(said) :]
        if said:
            yield said
        if is_tagged:
            self._enter("tagged", len(OPEN))

    def _read(self) -> Iterator[Found]:
        assert self._value is not None, "set when the mode was entered"
        begun = _BEGUN.match(self._text, self._value.start) if self._is_held else None
        if begun and begun[2] in self._names and not (begun[1] and self._mode == "tagged"):
            self.num_calls += 1
            self._next = "closing" if self._mode == "tagged" else "between"
            self._is_list = self._is_list or bool(begun[1])
            self._text = self._text[begun.end() :]
            self._enter("arguments", 0)
            yield Call(begun[2], "")
            return
        end = self._value.end(self._text)
        if end is None:
            return
        calls = _calls(self._text[self._value.start : end], self._names)
        if not calls:
            yield from self._give_up(end)
            return
        self.num_calls += len(calls)
        self._text = self._text[end:]
        self._enter("closing" if self._mode == "tagged" else "between", 0)
        yield from calls

    def _read_on(self) -> Iterator[More]:
        """Tell the arguments as far as they have come."""
        assert self._value is not None, "set when the mode was entered"
        end = self._value.end(self._text)
        piece = self._text[:end]
        if piece:
            yield More(piece)
        self._text = self._text[len(piece) :]
        if end is None:
            self._value.moved(len(piece))
        else:
            self._enter("called", 0)

    def _end_call(self) -> None:
        rest = self._text.lstrip()
        if rest:
            self._text = rest.removeprefix("}")
            self._enter(self._next, 0)

    def _give_up(self, end: int) -> Iterator[str]:
        """What looked like a call is something that is said."""
        said, self._text = self._text[:end], self._text[end:]
        self._enter("text", 0)
        yield said

    def _close(self) -> None:
        rest = self._text.lstrip()
        if rest.startswith(CLOSE):
            self._text = rest[len(CLOSE) :]
        elif CLOSE.startswith(rest):
            return
        self._enter("text", 0)

    def _go_on(self) -> None:
        rest = self._text.lstrip(" \t\r\n;,")
        if self._is_list and rest.startswith("]"):
            self._text, self._is_list = rest[1:], False
        elif rest:
            self._enter("bare" if rest[0] in "{[" else "text", len(self._text) - len(rest))


def _calls(text: str, names: Collection[str]) -> list[Call]:
    """Return the calls that a JSON value is, none if it is anything else."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return []
    calls = [_call(item, names) for item in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _call(value: Any, names: Collection[str]) -> Call | None:
    if not isinstance(value, dict) or not value.keys() <= _KEYS or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        # Some models write the object as a text.
        try:
            arguments = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _overlap(text: str, mark: str) -> int:
    """Return how much of a mark the end of a text may be."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
