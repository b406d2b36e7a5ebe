"""Workload files: what is read, and that every mistake names its line and its field."""

import pytest

from alpage.errors import InvalidValue
from alpage.workload_file import RequestSpec, load_workload

GOOD = '{"prompt_tokens": 3, "output_tokens": 2}'


def load(tmp_path, *lines, end="\n"):
    path = tmp_path / "workload.jsonl"
    path.write_bytes(("\n".join(lines) + end).encode("utf-8", "surrogateescape"))
    return load_workload(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_every_form_of_request(tmp_path, end):
    specs = load(
        tmp_path,
        '{"prompt": [7, 0], "output_tokens": 64}',
        '{"prompt": "one\u2028line", "output_tokens": 1, "n": 4, "arrival_s": 1.5}',
        '{"prompt": null, "prompt_tokens": 128, "output_tokens": 9, "n": 1, "beam_width": 4}',
        end=end,
    )
    assert specs == [
        RequestSpec(prompt=[7, 0], output_tokens=64),
        RequestSpec(prompt="one\u2028line", output_tokens=1, n=4, arrival_s=1.5),
        RequestSpec(prompt_tokens=128, output_tokens=9, beam_width=4),
    ]
    assert [spec.num_continuations for spec in specs] == [1, 4, 4]


MISTAKES = {
    "no JSON": ("{", ""),
    "an empty line": ("", ""),
    "not UTF-8": ('{"prompt": "\udcff", "output_tokens": 1}', ""),
    "too deep": ("[" * 100_000, ""),
    "not a number": ('{"prompt_tokens": 1, "output_tokens": 1, "arrival_s": NaN}', ""),
    "no object": ("[1]", ""),
    "an unknown field": ('{"prompt_tokens": 1, "output_tokens": 1, "temperatur": 1}', "temperatur"),
    "a missing field": ('{"prompt_tokens": 1}', "output_tokens"),
    "no output": ('{"prompt_tokens": 1, "output_tokens": 0}', "output_tokens"),
    "half a token": ('{"prompt_tokens": 1, "output_tokens": 1.5}', "output_tokens"),
    "a flag for a number": ('{"prompt_tokens": 1, "output_tokens": true}', "output_tokens"),
    "text for a number": ('{"prompt_tokens": "1", "output_tokens": 1}', "prompt_tokens"),
    "a negative id": ('{"prompt": [5, -1], "output_tokens": 1}', "prompt[1]"),
    "ids that are text": ('{"prompt": ["a"], "output_tokens": 1}', "prompt[0]"),
    "no ids": ('{"prompt": [], "output_tokens": 1}', "prompt"),
    "no text": ('{"prompt": "", "output_tokens": 1}', "prompt"),
    "no prompt": ('{"output_tokens": 1}', "prompt, prompt_tokens"),
    "two prompts": (
        '{"prompt": "a", "prompt_tokens": 1, "output_tokens": 1}',
        "prompt, prompt_tok",
    ),
    "beams and samples": (
        '{"prompt": "a", "output_tokens": 1, "n": 2, "beam_width": 2}',
        "n, beam",
    ),
    "no samples": ('{"prompt": "a", "output_tokens": 1, "n": 0}', "n"),
    "in no time": ('{"prompt": "a", "output_tokens": 1, "arrival_s": 1e300}', "arrival_s"),
    "before the start": ('{"prompt": "a", "output_tokens": 1, "arrival_s": -1}', "arrival_s"),
}


@pytest.mark.parametrize(("line", "field"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_names_line_and_field(tmp_path, line, field):
    with pytest.raises(InvalidValue) as caught:
        load(tmp_path, GOOD, line, GOOD)
    assert caught.value.field.startswith(
        f"workload line 2: {field}" if field else "workload line 2"
    )
    assert bool(field) == (":" in caught.value.field)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidValue, match="No such file"):
        load_workload(tmp_path / "none.jsonl")
    with pytest.raises(InvalidValue, match="line 1"):
        load(tmp_path, "")


# -- traces ----------------------------------------------------------------------------------------

HEADING = "TIMESTAMP,ContextTokens,GeneratedTokens"


def load_trace(tmp_path, *lines):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADING, *lines]) + "\n")
    return load_workload(path)


def test_trace_is_a_workload(tmp_path):
    specs = load_trace(
        tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"
    )
    assert specs == [
        RequestSpec(prompt_tokens=374, output_tokens=44),
        RequestSpec(prompt_tokens=396, output_tokens=109, arrival_s=4.314579),
    ]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("2023-11-16 18:15:47,0,1", "ContextTokens"),
        ("2023-11-16 18:15:47,5", "GeneratedTokens"),
        ("2023-11-16 18:15:47,5,1e3", "GeneratedTokens"),
        ("yesterday,5,1", "TIMESTAMP"),
        ("2023-11-16 18:15:45,5,1", "TIMESTAMP"),
    ],
)
def test_mistakes_in_a_trace_are_named(tmp_path, line, field):
    with pytest.raises(InvalidValue) as raised:
        load_trace(tmp_path, "2023-11-16 18:15:46,5,1", line)
    assert raised.value.field == f"workload line 3: {field}"
