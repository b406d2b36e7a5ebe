"""Guides: whatever the model would say, what it says has the form that was asked for."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpage import LLM, Guide, SamplingParams
from alpage.errors import InvalidValue
from tiny_llama import EOS, make_tiny_llama

PROMPT = [5, 6, 7]
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8, "pattern": "^[a-z]*$"},
        "population": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 2},
        "river": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "population", "tags", "river"],
    "additionalProperties": False,
}
LIMITS = {"max_tokens": 800, "seed": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=1024)
    return path


def make_llm(path, **options):
    settings = {"kv_memory": "4MiB", "dtype": "float32", "device": "cpu", "max_num_seqs": 16}
    return LLM(path, notify=lambda _line: None, **(settings | options))


@pytest.fixture(scope="module")
def llm(path):
    return make_llm(path)


def guided(guide, **others):
    return SamplingParams(guide=guide, **(LIMITS | others))


def outputs(llm, guide, **others):
    return llm.generate([PROMPT], guided(guide, **others))[0].outputs


def is_city(text):
    value = json.loads(text)
    assert list(value) == CITY["required"]
    assert re.fullmatch("[a-z]{0,8}", value["name"])
    assert isinstance(value["population"], int)
    assert 0 <= value["population"] <= 9999
    assert set(value["tags"]) <= {"old", "new"}
    assert len(value["tags"]) <= 2
    return value["river"] in (True, False, None)


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_schema_is_kept_at_any_temperature(llm, temperature):
    for output in outputs(
        llm, Guide.json(CITY), temperature=temperature, n=1 + 3 * (temperature > 0)
    ):
        assert output.finish_reason == "stop"
        assert is_city(output.text)


@pytest.mark.parametrize(
    "pattern", ["[ab]{3}", "(19|20)[0-9]{2}-[01][0-9]", "a+b?", "[^a-z]{1,9}", "é(ü|😀){2}"]
)
def test_regex_matches_the_whole_text(llm, pattern):
    for output in outputs(llm, Guide.regex(pattern), n=4):
        assert output.finish_reason == "stop"
        assert re.fullmatch(pattern, output.text)


def test_choice_is_one_of_them(llm):
    choices = ["yes", "no", "no way", 'with "quotes"\n', "naïve 😀"]
    texts = [outputs(llm, Guide.choice(choices), seed=seed)[0].text for seed in range(20)]
    assert set(texts) <= set(choices)
    assert len(set(texts)) > 1


LARK = 'start: term ("+" term)~0..3\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9]/'
GBNF = 'root ::= term ("+" term)*\nterm ::= [1-9] | "(" root ")"'


@pytest.mark.parametrize("source", [LARK, GBNF], ids=["lark", "gbnf"])
def test_grammar_may_recurse(llm, source):
    texts = [outputs(llm, Guide.grammar(source), seed=seed)[0] for seed in range(8)]
    done = [output.text for output in texts if output.finish_reason == "stop"]
    assert done
    for text in done:
        assert re.fullmatch(r"[1-9+()]+", text)
        compile(text, "sum", "eval")


def test_any_object(llm):
    (output,) = outputs(llm, Guide.json_object(), temperature=5.0, logit_bias={ord("}") + 6: 0})
    assert output.text.startswith("{")


def test_schema_may_refer_to_itself(llm):
    tree = {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
        "additionalProperties": False,
    }
    value = json.loads(outputs(llm, Guide.json(tree))[0].text)
    while value is not None:
        assert list(value) == ["left"]
        value = value["left"]


# -- the end ---------------------------------------------------------------------------------------


def test_text_ends_with_its_form_and_keeps_its_last_token(llm):
    (output,) = outputs(llm, Guide.regex("[ab]{5}"))
    assert (len(output.text), output.finish_reason, output.stop_reason) == (5, "stop", None)
    assert len(output.token_ids) == 5


def test_end_is_drawn_only_where_the_form_may_end(llm):
    """A bias that makes the end certain takes the shortest text."""
    (output,) = outputs(llm, Guide.regex("[ab]{3,9}"), logit_bias={EOS: 100}, temperature=0)
    assert len(output.text) == 3
    assert output.token_ids[-1] == EOS


def test_least_length_goes_as_far_as_the_form_does(llm):
    (output,) = outputs(llm, Guide.regex("[ab]{3,9}"), logit_bias={EOS: 100}, min_tokens=6)
    assert len(output.text) == 6
    (output,) = outputs(llm, Guide.regex("[ab]{3}"), min_tokens=6)
    assert len(output.text) == 3


def test_length_cuts_a_form(llm):
    (output,) = outputs(llm, Guide.regex("[ab]{50}"), max_tokens=7)
    assert (len(output.text), output.finish_reason) == (7, "length")
    (output,) = outputs(llm, Guide.regex("[ab]{7}"), max_tokens=7)
    assert (len(output.text), output.finish_reason) == (7, "stop")


def test_stop_strings_end_it_earlier(llm):
    (output,) = outputs(llm, Guide.regex("[ab]{4}-[ab]{4}"), stop="-")
    assert re.fullmatch("[ab]{4}", output.text)
    assert output.stop_reason == "-"


def test_form_that_gets_too_hard_ends_its_own_request_alone(llm):
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(2000)}}
    late = {
        "type": "object",
        "properties": {"a much longer name": wide},
        "required": ["a much longer name"],
    }
    easy = guided(Guide.regex("[ab]{40}"))
    hard, other = llm.generate([PROMPT] * 2, [guided(Guide.json(late)), easy])
    assert hard.outputs[0].finish_reason == "abort"
    assert hard.outputs[0].text.startswith("{")
    assert len(other.outputs[0].text) == 40
    with pytest.raises(InvalidValue, match="followed"):
        llm.generate([PROMPT], guided(Guide.json(wide)))


# -- together --------------------------------------------------------------------------------------


def test_continuations_go_their_own_ways(llm):
    found = outputs(llm, Guide.regex("[a-z]{6}"), n=6, temperature=2.0)
    assert len({output.text for output in found}) > 1
    assert all(re.fullmatch("[a-z]{6}", output.text) for output in found)
    best = outputs(llm, Guide.regex("[a-z]{6}"), n=2, best_of=6, temperature=2.0)
    means = [output.cumulative_logprob / len(output.token_ids) for output in best]
    assert means == sorted(means, reverse=True)


def test_others_in_the_batch_do_not_notice(llm):
    free = SamplingParams(temperature=0, max_tokens=20, logprobs=2)
    alone = llm.generate([PROMPT], free)[0].outputs[0]
    batch = [free, guided(Guide.json(CITY)), free, guided(Guide.choice(["a", "b"]), n=3)]
    found = [output.outputs[0] for output in llm.generate([PROMPT] * 4, batch)]
    for output in (found[0], found[2]):
        assert output.token_ids == alone.token_ids
        assert [
            {token: entry.rank for token, entry in entries.items()} for entries in output.logprobs
        ] == [{token: entry.rank for token, entry in entries.items()} for entries in alone.logprobs]
    assert is_city(found[1].text)
    assert found[3].text in ("a", "b")


def test_log_probabilities_are_the_models(llm):
    (free,) = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=1, logprobs=5))
    (output,) = outputs(llm, Guide.regex("[ab]"), temperature=0, logprobs=5)
    top = free.outputs[0].logprobs[0]
    assert {t: top[t] for t in top} == {t: output.logprobs[0][t] for t in top}


@pytest.mark.parametrize("swap", ["0", "256KiB"], ids=["recompute", "swap"])
def test_preemption_changes_nothing(path, llm, swap):
    """So few pages that sequences are thrown out and come back in the middle of their form."""
    tight = make_llm(path, kv_memory="96KiB", swap_memory=0 if swap == "0" else swap, page_size=8)
    word = "([a-f]{3}|[g-z]{4})"
    guide = Guide.regex(f"{word}(-{word}){{12}}")
    params = [guided(guide, seed=seed, max_tokens=70, n=2) for seed in range(6)]
    expected = llm.generate([PROMPT] * 6, params)
    found = tight.generate([PROMPT] * 6, params)
    assert tight.engine.engines[0].scheduler.num_preemptions > 0
    for one, other in zip(expected, found, strict=True):
        assert [o.text for o in one.outputs] == [o.text for o in other.outputs]
        assert all(re.fullmatch(guide.source, o.text) for o in other.outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut", [{"devices": 2}, {"devices": 2, "stages": 2}, {"devices": 2, "replicas": 2}]
)
def test_ranks_draw_the_same(path, llm, cut):
    params = [guided(Guide.json(CITY), seed=seed, n=2) for seed in range(3)]
    expected = llm.generate([PROMPT] * 3, params)
    found = make_llm(path, kv_memory="1MiB", **cut).generate([PROMPT] * 3, params)
    for one, other in zip(expected, found, strict=True):
        assert [o.text for o in one.outputs] == [o.text for o in other.outputs]


# -- any schema ------------------------------------------------------------------------------------

leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -50, "maximum": 50},
        {"type": "string", "maxLength": 3},
        {"enum": ["a", 1, None]},
        {"const": {"x": [1]}},
    ]
)


def objects(children):
    def schema(properties):
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    return st.dictionaries(st.text('abc"é', max_size=3), children, max_size=3).map(schema)


def arrays(children):
    return children.map(lambda items: {"type": "array", "items": items, "maxItems": 2})


schemas = st.recursive(leaves, lambda s: objects(s) | arrays(s), max_leaves=5)


def fits(value, schema):
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"object": dict, "array": list, "boolean": bool, "integer": int, "string": str}
    kind = schema["type"]
    if not isinstance(value, kinds.get(kind, type(None))):
        return False
    if kind == "object":
        own = schema["properties"]
        return value.keys() == own.keys() and all(fits(value[key], own[key]) for key in own)
    if kind == "array":
        return len(value) <= 2 and all(fits(item, schema["items"]) for item in value)
    return len(value) <= 3 if kind == "string" else kind != "integer" or -50 <= value <= 50


@settings(max_examples=40)
@given(schemas, st.integers(0, 2**32))
def test_any_schema_is_kept(llm, schema, seed):
    (output,) = outputs(llm, Guide.json(schema), seed=seed, max_tokens=400)
    if output.finish_reason == "stop":
        assert fits(json.loads(output.text), schema)
    else:
        assert output.finish_reason == "length"


# -- what is refused -------------------------------------------------------------------------------


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chain(length):
    """Definitions that refer to each other in a row, which a compiler follows by recursion."""
    links = {
        f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}}
        for i in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "string"}}}


BAD = {
    "no schema": lambda: Guide.json("[1]"),
    "no JSON": lambda: Guide.json("{"),
    "unknown type": lambda: Guide.json({"type": "strin"}),
    "no such reference": lambda: Guide.json({"$ref": "#/nope"}),
    "reference elsewhere": lambda: Guide.json({"$ref": "http://example.com/schema"}),
    "nothing but itself": lambda: Guide.json({"$ref": "#"}),
    "nothing": lambda: Guide.json(False),
    "not supported": lambda: Guide.json({"not": {"type": "string"}}),
    "deep": lambda: Guide.json(nested(70)),
    "very deep": lambda: Guide.json("[" * 60_000),
    "long": lambda: Guide.json({"enum": ["a" * 1_000_000]}),
    "long chain": lambda: Guide.json(chain(400)),
    "states": lambda: Guide.json({"type": "integer", "multipleOf": 999_983}),
    "states together": lambda: Guide.json(
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}
    ),
    "states in a grammar": lambda: Guide.grammar(
        'start: %json {"type": "integer", "multip\\u006ceOf": 999983}'
    ),
    "NaN": lambda: Guide.json({"const": float("nan")}),
    "half of a pair": lambda: Guide.regex("\ud800"),
    "regex": lambda: Guide.regex("(a"),
    "look-around": lambda: Guide.regex("a(?=b)"),
    "regex bomb": lambda: Guide.regex("(a{1000}){1000}"),
    "long regex": lambda: Guide.regex("a" * 10_000),
    "empty regex": lambda: Guide.regex(""),
    "no choice": lambda: Guide.choice([]),
    "empty choice": lambda: Guide.choice(["a", ""]),
    "choice of numbers": lambda: Guide.choice([1]),
    "a text is no choice": lambda: Guide.choice("abc"),
    "grammar": lambda: Guide.grammar("start: nothing"),
    "grammar without end": lambda: Guide.grammar('start: "a" start'),
    "bad GBNF": lambda: Guide.grammar("root ::= ((("),
    "grammar bomb": lambda: Guide.grammar('start: a{1000}\na: b{1000}\nb: "x"{1000}'),
    "no kind": lambda: Guide(kind="yaml", source=""),
    "no text": lambda: Guide(kind="regex", source=1),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_what_has_no_meaning_is_refused(llm, make):
    with pytest.raises(InvalidValue, match="guide"):
        llm.generate([PROMPT], SamplingParams(guide=make(), max_tokens=4))


def test_what_is_no_guide_is_refused():
    with pytest.raises(InvalidValue, match="guide"):
        SamplingParams(guide="[ab]")
