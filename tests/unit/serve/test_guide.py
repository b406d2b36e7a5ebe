"""Guides as data: what is refused before anything is compiled, and what is not."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.errors import InvalidValue
from alpage.serve.guide import (
    MAX_JSON_BYTES,
    MAX_MULTIPLE,
    MAX_NESTING,
    MAX_TEXT_BYTES,
    MAX_TOTAL_NESTING,
    Guide,
)
from alpage.serve.params import SamplingParams


def nested(depth):
    """A schema of that many levels."""
    schema = {"type": "string"}
    for _ in range(depth - 2):
        schema = {"items": schema}
    return schema


def definitions(number, depth):
    """Schemas of a depth, each of which is referred to."""
    references = [{"$ref": f"#/$defs/a{i}"} for i in range(number)]
    return {"anyOf": references, "$defs": {f"a{i}": nested(depth) for i in range(number)}}


def test_limits_are_where_they_are_said_to_be():
    Guide.json(nested(MAX_NESTING))
    with pytest.raises(InvalidValue, match="nested 64 deep"):
        Guide.json(nested(MAX_NESTING + 1))
    Guide.regex("a" * MAX_TEXT_BYTES)
    with pytest.raises(InvalidValue, match="8192 bytes"):
        Guide.regex("a" * (MAX_TEXT_BYTES - 1) + "é")
    with pytest.raises(InvalidValue, match="65536 bytes"):
        Guide.json({"const": "a" * MAX_JSON_BYTES})
    number = MAX_TOTAL_NESTING // 20 - 2
    Guide.json(definitions(number, 20))
    with pytest.raises(InvalidValue, match="all that it refers to"):
        Guide.json(definitions(number + 3, 20))


@pytest.mark.parametrize("multiples", [[MAX_MULTIPLE], [0.01], [4, 6, 10], [0.5, 25]])
def test_multiples_with_few_states_are_taken(multiples):
    Guide.json({"allOf": [{"multipleOf": multiple} for multiple in multiples]})


@pytest.mark.parametrize(
    "multiples", [[MAX_MULTIPLE + 1], [0], [-1], [1e400], [997, 991], [0.01, 997], [1e-300]]
)
def test_multiples_with_many_states_are_not(multiples):
    with pytest.raises(InvalidValue, match="multipleOf"):
        Guide.json(json.dumps({"allOf": [{"multipleOf": multiple} for multiple in multiples]}))


def test_grammars_are_looked_into():
    Guide.grammar('start: %json {"type": "integer"}')
    for source in (
        "start: %json " + json.dumps(nested(MAX_NESTING + 1)),
        'start: %json {"multip\\u006ceOf": 999983}',
        "start: %json {",
        "start: %json\n[1]",
    ):
        with pytest.raises(InvalidValue, match="grammar"):
            Guide.grammar(source)


def test_params_travel_with_their_guide():
    params = SamplingParams(guide=Guide.choice(["a", "é"]))
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert arrived.guide == params.guide
    assert hash(params.guide) == hash(Guide.choice(["a", "é"]))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_is_no_guide_is_refused_as_that(value):
    for make in (Guide.json, Guide.choice, Guide.regex, Guide.grammar):
        try:
            made = make(value)
        except InvalidValue as error:
            assert error.field.startswith("guide")  # noqa: PT017
        else:
            assert isinstance(made.source, str)
