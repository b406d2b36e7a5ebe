"""Guide: what form a text must have, as data: a JSON schema, a regex, a choice or a grammar.

Limits are checked where a guide is made. They bound what compiling it can take: the compiler
(`grammars.py`) follows schemas by recursion, and a multiple of n needs n states.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias, final

from alpage.errors import InvalidValue

GuideKind: TypeAlias = Literal["json", "regex", "choice", "grammar"]

MAX_JSON_BYTES: Final = 64 * 1024
MAX_TEXT_BYTES: Final = 8 * 1024
MAX_NESTING: Final = 64
# Of a schema and of all that it refers to, one below the other.
MAX_TOTAL_NESTING: Final = 1000
MAX_MULTIPLE: Final = 10_000
_SIZES: Final = {
    "json": MAX_JSON_BYTES,
    "choice": MAX_JSON_BYTES,
    "regex": MAX_TEXT_BYTES,
    "grammar": MAX_JSON_BYTES,
}
_DIRECTIVE: Final = re.compile(r"%(json|regex)\b\s*")
Schema: TypeAlias = Mapping[str, Any] | bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """The form of a text: no token is drawn that leaves it, and the text ends where it ends.

    Args:
        kind: how `source` is written.
        source: a JSON schema; a regular expression (Rust's, without look-around) for the whole
            text; a JSON list of texts, one of which it is to be; or a grammar in Lark's form, as
            llguidance reads it, or in llama.cpp's (GBNF).

    Raises:
        InvalidValue: it is too long, too deep, or of the wrong form.
    """

    kind: GuideKind
    source: str

    def __post_init__(self) -> None:
        if self.kind not in _SIZES:
            raise _wrong(self.kind, "guide.kind", "must be one of " + ", ".join(_SIZES))
        if not isinstance(self.source, str):
            raise _wrong(self.source, self.field, "must be a text")
        try:
            num_bytes = len(self.source.encode())
        except UnicodeEncodeError:
            raise _wrong(self.source, self.field, "must be a text that UTF-8 can encode") from None
        if num_bytes > _SIZES[self.kind]:
            limit = f"may have at most {_SIZES[self.kind]} bytes"
            raise _wrong(f"{num_bytes} bytes", self.field, limit)
        if "\0" in self.source:
            raise _wrong(self.source, self.field, "may not hold the character U+0000")
        if self.kind == "json":
            _check_schema(_parsed(self.source, self.field), self.field)
        elif self.kind == "choice":
            _check_choice(_parsed(self.source, self.field))
        elif self.kind == "grammar":
            for schema in _embedded(self.source):
                _check_schema(schema, self.field)

    @property
    def field(self) -> str:
        """What errors call it."""
        return f"guide.{self.kind}"

    @staticmethod
    def json(schema: Schema | str) -> "Guide":
        """JSON that a schema describes."""
        return Guide(kind="json", source=schema if isinstance(schema, str) else _json_of(schema))

    @staticmethod
    def json_object() -> "Guide":
        """Any JSON object."""
        return Guide(kind="json", source='{"type":"object"}')

    @staticmethod
    def regex(pattern: str) -> "Guide":
        """A text that the whole of a regular expression matches."""
        return Guide(kind="regex", source=pattern)

    @staticmethod
    def choice(texts: Sequence[str]) -> "Guide":
        """One of several texts."""
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        return Guide(kind="choice", source=_json_of([*texts] if is_list else texts))

    @staticmethod
    def grammar(source: str) -> "Guide":
        """A text of a context-free language, described in Lark's form or in GBNF."""
        return Guide(kind="grammar", source=source)


def _json_of(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(value, "guide", f"cannot be written as JSON: {error}") from None


def _parsed(source: str, field: str) -> Any:
    try:
        return json.loads(source)
    except RecursionError:
        raise _wrong(source, field, f"may be nested {MAX_NESTING} deep") from None
    except ValueError as error:
        raise _wrong(source, field, f"must be JSON: {error}") from None


def _check_choice(texts: object) -> None:
    is_list = isinstance(texts, list) and bool(texts)
    if not is_list or not all(isinstance(text, str) and text for text in texts):  # type: ignore[attr-defined]
        raise _wrong(texts, "guide.choice", "must be a list of texts that are not empty")


def _embedded(source: str) -> Iterator[Any]:
    """Yield the JSON values that a grammar holds by itself."""
    for found in _DIRECTIVE.finditer(source):
        try:
            yield json.JSONDecoder().raw_decode(source, found.end())[0]
        except (ValueError, RecursionError):
            limit = f"must have a JSON value behind %{found[1]}, nested {MAX_NESTING} deep at most"
            raise _wrong(source, "guide.grammar", limit) from None


def _check_schema(schema: object, field: str) -> None:
    if not isinstance(schema, dict | bool):
        raise _wrong(schema, field, "must be an object or a truth value")
    if is_deeper(schema, MAX_NESTING):
        raise _wrong(schema, field, f"may be nested {MAX_NESTING} deep")
    references, multiples = set[str](), set[float]()
    for level in _levels(schema):
        tables = [node for node in level if isinstance(node, dict)]
        references.update(r for node in tables if isinstance(r := node.get("$ref"), str))
        multiples.update(m for node in tables for m in _multiple(node))
    _check_multiples(multiples, field)
    # What is referred to lies below what refers to it.
    total = _depth(schema) + sum(_depth(_found(schema, reference)) for reference in references)
    if total > MAX_TOTAL_NESTING:
        limit = f"may be nested {MAX_TOTAL_NESTING} deep with all that it refers to"
        raise _wrong(schema, field, limit)


def _multiple(node: Mapping[str, Any]) -> list[float]:
    value: Any = node.get("multipleOf")
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _check_multiples(multiples: Collection[float], field: str) -> None:
    """Bound the least number that is a multiple of all: so many states its automaton has."""
    if not multiples:
        return
    if all(math.isfinite(m) and 0 < m <= MAX_MULTIPLE for m in multiples):
        fractions = [Fraction(str(multiple)) for multiple in multiples]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        common = math.lcm(*(int(fraction * scale) for fraction in fractions))
        if max(scale, common) <= MAX_MULTIPLE:
            return
    limit = f"must be above 0, and have digits and common multiples of {MAX_MULTIPLE} at most"
    raise _wrong(sorted(multiples), f"{field}.multipleOf", limit)


def _found(schema: object, reference: str) -> object:
    """Return what a reference points to; the whole schema if that is not plain to see."""
    node: Any = schema
    if not reference.startswith("#/"):
        return schema
    for part in reference[2:].split("/"):
        if not isinstance(node, dict) or part not in node:
            return schema
        node = node[part]
    return node


def is_deeper(value: object, depth: int) -> bool:
    """Return whether a JSON value has more levels than that."""
    return any(number >= depth for number, _ in enumerate(_levels(value)))


def _depth(value: object) -> int:
    return sum(1 for _ in _levels(value))


def _levels(value: object) -> Iterator[list[Any]]:
    """Yield the nodes of a JSON value, level by level, without recursion."""
    level: list[Any] = [value]
    while level:
        yield level
        lists = [node for node in level if isinstance(node, list)]
        tables = [node.values() for node in level if isinstance(node, dict)]
        level = [item for node in (*lists, *tables) for item in node]


def _wrong(value: object, field: str, limit: str) -> InvalidValue:
    return InvalidValue(
        field=field, value=value, limit=limit, remedy="Give a simpler form, or none"
    )
