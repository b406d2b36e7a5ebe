"""Tool calls in a text: the same however the text comes, and nothing that is said gets lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.http.tool_calls import Call, More, ToolReader

NAMES = frozenset({"weather", "time"})
WEATHER = Call("weather", '{"city": "Zürich }{[\\""}')
TIME = Call("time", "{}")
AS_JSON = '{"name": "weather", "arguments": ' + WEATHER.arguments + "}"
LLAMA = '{"name": "weather", "parameters": ' + WEATHER.arguments + "}"
NOW = '{"name": "time", "arguments": {}}'


def tagged(*calls):
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def merged(found):
    """What was said, and the calls with all that came to them."""
    text, calls = "", []
    for item in found:
        if isinstance(item, str):
            text += item
        elif isinstance(item, Call):
            calls.append(item)
        else:
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + item.arguments)
    return text, calls


def read(*pieces, is_held=False):
    reader = ToolReader(NAMES, is_held=is_held)
    text, calls = merged([i for piece in pieces for i in reader.push(piece)] + reader.finish())
    assert reader.num_calls == len(calls)
    return text, calls


TEXTS = {
    "nothing": ("", "", []),
    "text": ("Just <b>words</b> {}", "Just <b>words</b> {}", []),
    "space": ("  \n ", "  \n ", []),
    "hermes": (tagged(AS_JSON), "", [WEATHER]),
    "hermes twice": (tagged(AS_JSON, NOW), "", [WEATHER, TIME]),
    "hermes behind words": ("Let me see.\n\n" + tagged(AS_JSON), "Let me see.", [WEATHER]),
    "words behind hermes": (tagged(AS_JSON) + "\nDone.", "\nDone.", [WEATHER]),
    "no end mark": ("<tool_call>" + AS_JSON, "", [WEATHER]),
    "one line": (
        f"<tool_call>{AS_JSON}</tool_call><tool_call>{NOW}</tool_call>",
        "",
        [WEATHER, TIME],
    ),
    "llama": (LLAMA, "", [WEATHER]),
    "llama with its mark": ("<|python_tag|>" + LLAMA, "", [WEATHER]),
    "llama twice": (f"{LLAMA}; {NOW}", "", [WEATHER, TIME]),
    "lines": (f"{AS_JSON}\n{NOW}\n", "", [WEATHER, TIME]),
    "mistral": (f"[TOOL_CALLS] [{AS_JSON}, {NOW}]", "", [WEATHER, TIME]),
    "mistral without its mark": (f" [{AS_JSON}]", "", [WEATHER]),
    "arguments as text": (json.dumps({"name": "time", "arguments": "{}"}), "", [TIME]),
    "no arguments": ('{"name": "time"}', "", [TIME]),
    "unknown tool": ('{"name": "rm", "arguments": {}}', '{"name": "rm", "arguments": {}}', []),
    "unknown tool in tags": (tagged('{"name": "rm"}'), tagged('{"name": "rm"}'), []),
    "JSON that is no call": ('{"name": "time", "age": 3}', '{"name": "time", "age": 3}', []),
    "list that is no call": ("[1, 2]", "[1, 2]", []),
    "empty list": ("[]", "[]", []),
    "half a call": (AS_JSON[:-1], AS_JSON[:-1], []),
    "half a tag": ("a <tool_c", "a <tool_c", []),
    "tag around words": ("<tool_call>hello</tool_call>", "<tool_call>hello</tool_call>", []),
    "tag around nothing": ("<tool_call></tool_call>", "<tool_call></tool_call>", []),
    "broken JSON": ('{"name": time}', '{"name": time}', []),
    "no number": ('{"name": "time", "arguments": {"a": NaN}}',) * 2 + ([],),
    "wrong arguments": ('{"name": "time", "arguments": [1]}',) * 2 + ([],),
    "a mark alone": ("[TOOL_CALLS]", "[TOOL_CALLS]", []),
    "a mark before words": ("[TOOL_CALLS] no", "[TOOL_CALLS] no", []),
    "closing first": ("}]</tool_call>", "}]</tool_call>", []),
}


@pytest.mark.parametrize(("text", "said", "calls"), TEXTS.values(), ids=TEXTS)
def test_calls_are_found(text, said, calls):
    assert read(text) == (said, calls)
    assert read(*text) == (said, calls)


# Held to their form, these begin as calls and are calls to the end.
HELD = [name for name, (_, _, calls) in TEXTS.items() if calls and name != "arguments as text"]


@pytest.mark.parametrize("name", HELD)
def test_calls_that_are_held_to_a_form_are_the_same(name):
    text, said, calls = TEXTS[name]
    assert read(text, is_held=True) == (said, calls)
    assert read(*text, is_held=True) == (said, calls)


@pytest.mark.parametrize("text", [tagged(AS_JSON), LLAMA, f"[TOOL_CALLS][{NOW}, {AS_JSON}]"])
def test_arguments_come_as_they_are_written(text):
    reader = ToolReader(NAMES, is_held=True)
    found = [reader.push(character) for character in text]
    pieces = [item.arguments for items in found for item in items if isinstance(item, More)]
    assert len(pieces) > len(WEATHER.arguments) - 3
    assert merged([item for items in found for item in items])[1][-1] == WEATHER
    # Nothing is kept back for longer than it takes to know what it is.
    place = text.index("Zürich")
    seen = merged([item for items in found[: place + 6] for item in items])[1][-1]
    assert seen.arguments.endswith("Zürich")


def test_call_that_is_cut_has_what_came_of_its_arguments():
    text = tagged(AS_JSON)
    cut = text[: text.index("Zürich") + 3]
    assert read(*cut, is_held=True) == ("", [Call("weather", '{"city": "Zür')])
    before = text[: text.index("weather") + 3]
    assert read(*before, is_held=True) == (before, [])


pieces = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        AS_JSON,
        NOW,
        "[TOOL_CALLS]",
        "{",
        "}",
        "[",
        '"',
        "\\",
        " ",
        "a",
        ",",
    ]
)


@given(st.lists(pieces, max_size=8), st.integers(1, 9), st.booleans())
def test_pieces_make_no_difference(parts, size, is_held):
    text = "".join(parts)
    whole = read(text, is_held=is_held)
    pieces = (text[i : i + size] for i in range(0, len(text), size))
    assert read(*pieces, is_held=is_held) == whole


@given(st.text('{}[]"\\<tool_ca>/ \n', max_size=60))
def test_without_calls_all_is_said(text):
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    "unit", ["<tool_call>", "<", "{", '{"a":', "[", '"', "\\", "<tool_call>{", " ", AS_JSON[:30]]
)
@pytest.mark.parametrize("is_held", [False, True])
def test_time_is_linear(unit, is_held):
    """A reader that looked at everything anew for each piece would take minutes."""
    reader = ToolReader(NAMES, is_held=is_held)
    for _ in range(20_000):
        reader.push(unit)
    reader.finish()


def test_deep_json_is_no_call():
    text = "[" * 100_000 + "]" * 100_000
    assert read(text) == (text, [])
