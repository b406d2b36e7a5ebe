"""Tool forms: texts that a model may write where it may call, character by character."""

from types import SimpleNamespace

import pytest

from alpage.serve.grammars import Grammars
from alpage.serve.http.schema import FunctionDefinition, Tool
from alpage.serve.http.texts import Texts
from alpage.serve.http.tool_calls import ToolReader
from alpage.serve.http.tool_forms import HERMES, tool_guide
from alpage.serve.http.tools import Tooling

END, MARK = 256, 257
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Basel"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    Tool(function=FunctionDefinition("weather", parameters=CITY), type="function"),
    Tool(function=FunctionDefinition("a.b-c"), type="function"),
]
WEATHER = '{"name": "weather", "arguments": {"city": "Bern", "days": 2}}'
OTHER = '{"name":"a.b-c","arguments":{}}'
WRONG = '{"name": "weather", "arguments": {"city": "Bonn"'


class Bytes:
    """A tokenizer whose tokens are bytes, an end, and a mark that is no text."""

    special_ids = (END, MARK)

    def encode(self, text, *, add_special_tokens):
        return list(text.encode())

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < END else b"<special>"


def matcher_of(*, is_parallel):
    tooling = Tooling(tools=TOOLS, must_call=False, is_parallel=is_parallel)
    guide, _ = tool_guide(tooling, HERMES, (None, "response_format"), [MARK])
    return Grammars(Bytes(), MARK + 1, {END}).matcher(guide)


PARALLEL, SINGLE = matcher_of(is_parallel=True), matcher_of(is_parallel=False)


def end_of(matcher, tokens):
    """Return how many tokens may come, and whether the text may end behind them."""
    matcher = matcher.fork()
    for number, token in enumerate(tokens):
        if matcher.is_complete or not matcher.allowed[token // 8] >> token % 8 & 1:
            return number, False
        matcher.push(token)
    return len(tokens), matcher.is_complete or bool(matcher.allowed[END // 8] >> END % 8 & 1)


def tagged(call):
    return f"<tool_call>\n{call}\n</tool_call>"


FREE = [
    "",
    "Just words, and a < b, {}[], \u00e9.",
    "<tool_call> is a mark",
    '{"name": "someone", "arguments": {"x": 1}}',
    '{"name": "weather", "age": 3}',
    f"So: {WRONG}",
    "[1, 2]",
    "{",
    tagged(WEATHER),
    f"Let me see.\n{tagged(WEATHER)}",
    f"<tool_call>{OTHER}</tool_call>",
    WEATHER,
    OTHER.replace("arguments", "parameters"),
    f"[{WEATHER}]",
    f"[TOOL_CALLS] [{WEATHER}]",
    f"<|python_tag|>{WEATHER}",
]
SEVERAL = [
    f"{tagged(WEATHER)}\n{tagged(OTHER)} and more",
    f"{WEATHER}; {OTHER}",
    f"[{WEATHER}, {OTHER}]",
]


@pytest.mark.parametrize("text", FREE + SEVERAL)
def test_texts_and_calls_may_be_written(text):
    tokens = list(text.encode())
    assert end_of(PARALLEL, tokens) == (len(tokens), True)


@pytest.mark.parametrize("text", FREE)
def test_so_may_one_call(text):
    tokens = list(text.encode())
    assert end_of(SINGLE, tokens) == (len(tokens), True)


@pytest.mark.parametrize("before", ["", "<tool_call>", "Hi.\n<tool_call>\n", "[", "[TOOL_CALLS]["])
@pytest.mark.parametrize("matcher", [PARALLEL, SINGLE], ids=["parallel", "single"])
def test_call_that_has_begun_has_to_fit_its_schema(before, matcher):
    tokens = list((before + WRONG).encode())
    assert end_of(matcher, tokens) == (len(tokens) - len('onn"'), False)


@pytest.mark.parametrize("text", [f"{tagged(OTHER)} {tagged(WRONG)}", f"[{OTHER}, {WRONG}"])
def test_so_has_the_next_one(text):
    tokens = list(text.encode())
    num_wrong = len(text) - text.index("onn")
    assert end_of(PARALLEL, tokens) == (len(tokens) - num_wrong, False)


def test_mark_that_is_no_text_may_stand_before():
    tokens = [MARK, *f"[{WRONG}".encode()]
    assert end_of(PARALLEL, tokens) == (len(tokens) - len('onn"'), False)
    assert end_of(PARALLEL, [MARK, *b"words"])[1]
    assert end_of(PARALLEL, [*b"words", MARK]) == (5, False)


def test_marks_are_tokens_that_are_no_text():
    ids = {"[TOOL_CALLS]": END, "<tool_call>": MARK, "<|python_tag|>": 7}
    tokenizer = SimpleNamespace(token_to_id=ids.get, special_ids={END, MARK})
    assert Texts(tokenizer, None).tool_mark_ids == [END, MARK]
    assert Texts(SimpleNamespace(token_to_id={}.get), None).tool_mark_ids == []


@pytest.mark.parametrize("text", FREE + SEVERAL)
def test_reader_finds_the_same_calls_as_they_come(text):
    names = [tool.function.name for tool in TOOLS]
    held, other = ToolReader(names, is_held=True), ToolReader(names)
    for reader in (held, other):
        reader.push(text)
        reader.finish()
    assert held.num_calls == other.num_calls == text.count(WEATHER) + text.count("a.b-c")
