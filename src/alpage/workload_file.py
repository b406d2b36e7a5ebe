"""Workload file: the requests of a benchmark, one JSON object a line, or a trace of Azure's.

::

    {"prompt": [3, 14, 15], "output_tokens": 64}
    {"prompt": "Once upon a time", "output_tokens": 64, "n": 4, "arrival_s": 1.5}
    {"prompt_tokens": 128, "output_tokens": 64, "beam_width": 4}

A file named `.csv` is read as one of the Azure LLM inference traces (Patel et al. 2024, Splitwise,
ISCA): the columns TIMESTAMP, ContextTokens and GeneratedTokens.
"""

import csv
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
from msgspec import Meta

from alpage.errors import InvalidValue

# How msgspec ends the message about a value, and how it names a missing or an unknown field.
_PLACE = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_FIELD = re.compile(r" field `(?P<path>.*)`$")

_AZURE_COLUMNS = ("ContextTokens", "GeneratedTokens")

_Text = Annotated[str, Meta(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=1)]
# A year: no replay waits longer, and no clock overflows.
_Seconds = Annotated[float, Meta(ge=0, le=365 * 24 * 3600)]


@final
class RequestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request of a workload.

    Attributes:
        prompt: text or token ids; None: `prompt_tokens` says how many random ids.
        prompt_tokens: length of a prompt of random ids; None where there is a `prompt`.
        output_tokens: tokens that every continuation outputs, exactly: ends of text are ignored.
        n: continuations that are sampled; one is taken greedily.
        beam_width: hypotheses of a beam search; None samples.
        arrival_s: seconds after the start at which it arrives.
    """

    output_tokens: _Count
    prompt: _TokenIds | _Text | None = None
    prompt_tokens: _Count | None = None
    n: _Count = 1
    beam_width: _Count | None = None
    arrival_s: _Seconds = 0.0

    @property
    def num_continuations(self) -> int:
        """Continuations that it returns."""
        return self.n if self.beam_width is None else self.beam_width


def load_workload(path: Path) -> list[RequestSpec]:
    """Return the requests of a file; the first is on line 1, and no line is left out.

    Those of a trace begin behind its heading, and have random prompts.

    Raises:
        InvalidValue: the file cannot be read, or a line is no request; line and field are named.
    """
    try:
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise InvalidValue(
            field="workload",
            value=str(path),
            limit=f"cannot be read: {error.strerror}",
            remedy="Give a file with one JSON object a line",
        ) from error
    if path.suffix == ".csv":
        return list(_trace(lines))
    return [_parse(line, number) for number, line in enumerate(lines, start=1)]


def line_field(number: int, field: str) -> str:
    """Return how errors name a field of a line."""
    return f"workload line {number}: {field}" if field else f"workload line {number}"


def _trace(lines: list[bytes]) -> Iterator[RequestSpec]:
    """Yield the requests of a trace."""
    start: datetime | None = None
    reader = csv.DictReader(line.decode("utf-8", "replace") for line in lines)
    for record in reader:
        number = reader.line_num
        sizes = [record.get(column) or "" for column in _AZURE_COLUMNS]
        for column, size in zip(_AZURE_COLUMNS, sizes, strict=True):
            if not (size.isdecimal() and 0 < int(size) < 2**31):
                raise _refusal(number, column, size, "must be a positive number of tokens")
        try:
            # Of its seven decimals, Python knows six.
            time = datetime.fromisoformat((record.get("TIMESTAMP") or "")[:26])
        except ValueError:
            time_text = record.get("TIMESTAMP")
            raise _refusal(number, "TIMESTAMP", time_text, "must be a time") from None
        start = start or time
        arrival_s = (time - start).total_seconds()
        if arrival_s < 0:
            raise _refusal(number, "TIMESTAMP", str(time), "must not be before the first")
        num_prompt, num_output = map(int, sizes)
        yield RequestSpec(prompt_tokens=num_prompt, output_tokens=num_output, arrival_s=arrival_s)


def _parse(line: bytes, number: int) -> RequestSpec:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(number, "", line, f"is not valid JSON: {error}") from error
    try:
        spec = msgspec.convert(record, RequestSpec)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error)) or _FIELD.search(str(error))
        field = place["path"] if place else ""
        reason = _PLACE.sub("", str(error))
        raise _refusal(number, field, _value_at(record, field), reason) from error
    if (spec.prompt is None) == (spec.prompt_tokens is None):
        raise _refusal(number, "prompt, prompt_tokens", record, "exactly one of them must be given")
    if spec.n > 1 and spec.beam_width is not None:
        raise _refusal(number, "n, beam_width", record, "at most one of them may be given")
    return spec


def _value_at(record: Any, field: str) -> Any:
    """Return the value of the top-level field that a path such as "prompt[...]" begins with."""
    return record.get(field.partition("[")[0], record) if isinstance(record, dict) else record


def _refusal(number: int, field: str, value: object, limit: str) -> InvalidValue:
    return InvalidValue(
        field=line_field(number, field),
        value=value,
        limit=limit,
        remedy="Correct the line",
    )
