"""Structured output over HTTP: forms in OpenAI's words and vLLM's, and what is refused of them."""

import json
import re

import openai
import pytest
from pydantic import BaseModel, Field

from alpage import LLM
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, process_of, service_of

MESSAGES = [{"role": "user", "content": "Hi"}]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "y": {"enum": ["up", "down"]},
    },
    "required": ["x", "y"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "point", "schema": POINT, "strict": True}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=1024)
    return path


@pytest.fixture(scope="module")
def client(path):
    llm = LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=8)
    with service_of(llm) as service:
        yield Client(service)


def is_point(text):
    value = json.loads(text)
    return list(value) == ["x", "y"] and 0 <= value["x"] <= 99 and value["y"] in ("up", "down")


@pytest.mark.parametrize("strict", [True, False, None])
def test_chat_keeps_to_a_schema(client, strict):
    schema = {"name": "point", "schema": POINT, "strict": strict}
    reply = client.chat(
        MESSAGES, response_format={"type": "json_schema", "json_schema": schema}, n=3
    )
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "stop"
        assert is_point(choice["message"]["content"])


def test_streamed_is_the_whole(client):
    body = {"messages": MESSAGES, "response_format": FORMAT, "seed": 1}
    whole = client.chat(**body)["choices"][0]["message"]["content"]
    parts = client.stream(CHATS, body)
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in parts if p["choices"])
    assert text == whole
    assert is_point(text)


def test_any_object(client):
    reply = client.chat(MESSAGES, response_format={"type": "json_object"}, max_tokens=3)
    assert reply["choices"][0]["message"]["content"].startswith("{")


OUTPUTS = {
    "json": ({"json": POINT}, is_point),
    "json as text": ({"json": json.dumps(POINT)}, is_point),
    "regex": ({"regex": "[ab]{4}"}, lambda text: re.fullmatch("[ab]{4}", text)),
    "choice": ({"choice": ["left", "right"]}, lambda text: text in ("left", "right")),
    "grammar": ({"grammar": 'start: "a" "b"~2..3'}, lambda text: text in ("abb", "abbb")),
    "gbnf": ({"grammar": 'root ::= "a" [bc]'}, lambda text: text in ("ab", "ac")),
}


@pytest.mark.parametrize(("outputs", "is_right"), OUTPUTS.values(), ids=OUTPUTS)
def test_vllms_words_in_both_routes(client, outputs, is_right):
    body = {"structured_outputs": outputs, "max_tokens": 500}
    assert is_right(client.chat(MESSAGES, **body)["choices"][0]["message"]["content"])
    for choice in client.complete([[5, 6], [7, 8]], n=2, **body)["choices"]:
        assert is_right(choice["text"])


@pytest.mark.parametrize("name", OUTPUTS)
def test_vllms_older_words_mean_the_same(client, name):
    ((kind, value),) = OUTPUTS[name][0].items()
    is_right = OUTPUTS[name][1]
    body = {f"guided_{kind}": value, "max_tokens": 500, "response_format": {"type": "text"}}
    assert is_right(client.chat(MESSAGES, **body)["choices"][0]["message"]["content"])
    assert is_right(client.complete([5, 6], **body)["choices"][0]["text"])


def test_what_cannot_be_kept_is_left_out_unless_strict(client):
    schema = POINT | {
        "properties": POINT["properties"] | {"x": {"type": "integer", "maximum": 9, "minimum": 0}}
    }
    odd = schema | {"not": {"required": ["z"]}}
    loose = {"type": "json_schema", "json_schema": {"name": "odd", "schema": odd}}
    assert is_point(
        client.chat(MESSAGES, response_format=loose)["choices"][0]["message"]["content"]
    )
    strict = {"type": "json_schema", "json_schema": {"name": "odd", "schema": odd, "strict": True}}
    assert client.post(CHATS, {"messages": MESSAGES, "response_format": strict}).status_code == 400


def by_schema(schema, **fields):
    named = {"name": "s", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}} | fields


def by_outputs(**outputs):
    return {"structured_outputs": outputs}


def deep(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


CHAIN = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(900)}
FORMAT_PARAM, OUTPUTS_PARAM = "response_format", "structured_outputs"
BAD = {
    "unknown format": ({"response_format": {"type": "xml"}}, FORMAT_PARAM),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "empty schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
        "response_format.json_schema.schema",
    ),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
    ),
    "invalid schema": (by_schema({"type": "strin"}), FORMAT_PARAM),
    "deep schema": (by_schema(deep(200)), FORMAT_PARAM),
    "very deep schema": (by_outputs(json='{"items":' * 20_000), OUTPUTS_PARAM),
    "long schema": (by_schema({"enum": ["a" * 1_000_000]}), FORMAT_PARAM),
    "nothing but itself": (by_schema({"$ref": "#"}), FORMAT_PARAM),
    "a chain": (by_schema({"$ref": "#/$defs/a0", "$defs": CHAIN}), FORMAT_PARAM),
    "reference elsewhere": (by_schema({"$ref": "https://example.com/s"}), FORMAT_PARAM),
    "reference to a file": (by_schema({"$ref": "file:///etc/passwd"}), FORMAT_PARAM),
    "many states": (by_schema({"type": "integer", "multipleOf": 10**9 + 7}), FORMAT_PARAM),
    "wide schema": (
        by_schema({"type": "object", "properties": {f"k{i}": {} for i in range(3000)}}),
        FORMAT_PARAM,
    ),
    "regex": (by_outputs(regex="(a"), OUTPUTS_PARAM),
    "regex bomb": (by_outputs(regex="(a{1000}){1000}"), OUTPUTS_PARAM),
    "nested regex": (by_outputs(regex="(" * 4000 + "a" + ")" * 4000), OUTPUTS_PARAM),
    "long regex": (by_outputs(regex="a" * 100_000), OUTPUTS_PARAM),
    "no choice": (by_outputs(choice=[]), OUTPUTS_PARAM),
    "grammar": (by_outputs(grammar="start: a"), OUTPUTS_PARAM),
    "nothing": (by_outputs(), OUTPUTS_PARAM),
    "two": (by_outputs(regex="a", choice=["a"]), OUTPUTS_PARAM),
    "unknown word": (by_outputs(yaml="a"), "structured_outputs.yaml"),
    "both": (by_schema(POINT, structured_outputs={"regex": "a"}), FORMAT_PARAM),
    "old regex": ({"guided_regex": "(a"}, "guided_regex"),
    "old schema": ({"guided_json": '{"type": "strin"}'}, "guided_json"),
    "no old choice": ({"guided_choice": []}, "guided_choice"),
    "old grammar": ({"guided_grammar": "start: a"}, "guided_grammar"),
    "two old ones": ({"guided_json": POINT, "guided_regex": "a"}, "guided_json"),
    "old and new": (by_outputs(regex="a", choice=None) | {"guided_regex": "a"}, OUTPUTS_PARAM),
    "old and format": (by_schema(POINT, guided_choice=["a"]), FORMAT_PARAM),
    "old and beams": ({"guided_choice": ["a"], "use_beam_search": True}, "guided_choice"),
    "beams": (by_schema(POINT, use_beam_search=True, n=2), FORMAT_PARAM),
}


@pytest.mark.parametrize("route", [COMPLETIONS, CHATS])
@pytest.mark.parametrize(("fields", "param"), BAD.values(), ids=BAD)
def test_what_has_no_meaning_is_refused(client, fields, param, route):
    prompt = {"messages": MESSAGES} if route == CHATS else {"prompt": [5, 6]}
    response = client.post(route, prompt | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) < 700
    assert client.complete([5, 6], max_tokens=1)["choices"]


def test_slow_compilation_is_not_waited_for(path):
    llm = LLM(path, kv_memory="1MiB", dtype="float32", device="cpu", max_num_seqs=2)
    with service_of(llm, guide_timeout_s=0.0) as service:
        hasty = Client(service)
        response = hasty.post(COMPLETIONS, {"prompt": [5], "structured_outputs": {"regex": "a+"}})
        assert response.status_code == 400
        assert "within 0 s" in response.json()["error"]["message"]
        assert hasty.complete([5], max_tokens=1)["choices"]


class Step(BaseModel):
    left: bool
    count: int = Field(ge=0, le=9)


@pytest.mark.slow
def test_openais_client_parses_answers(path):
    with (
        process_of(path) as process,
        openai.OpenAI(base_url=process.url + "/v1", api_key="none") as server,
    ):
        done = server.chat.completions.parse(model=NAME, messages=MESSAGES, response_format=Step)
        assert isinstance(done.choices[0].message.parsed, Step)
        bad = {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "x"}, "strict": True},
        }
        with pytest.raises(openai.BadRequestError):
            server.chat.completions.create(model=NAME, messages=MESSAGES, response_format=bad)
