"""`/v1/responses`: chats by other names, whole and as events in order, for OpenAI's client."""

import json
import time

import openai
import pytest
from pydantic import BaseModel

from alpage import LLM, SamplingParams
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, process_of, service_of

PATH = "/v1/responses"
TEXT = "Who are you?"
MAX_LEN = 1024
GREEDY = {"temperature": 0, "max_output_tokens": 12}
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Basel"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
MESSAGE_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


class Place(BaseModel):
    """A place."""

    is_far: bool
    days: int


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=MAX_LEN)
    return path


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=16)


@pytest.fixture(scope="module")
def client(llm):
    with service_of(llm) as service:
        yield Client(service)


@pytest.fixture(scope="module")
def server(path):
    with (
        process_of(path) as process,
        openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as server,
    ):
        yield server


def respond(client, asked, **fields):
    response = client.post(PATH, {"input": asked} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def events_of(client, asked, **fields):
    """Return the events of a stream, numbered without a gap, each by its name."""
    response = client.post(PATH, {"input": asked, "stream": True} | fields)
    assert response.status_code == 200, response.text
    *events, last = [event for event in response.text.split("\n\n") if event]
    assert last == "data: [DONE]"
    found = []
    for number, event in enumerate(events):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
    return found


def kinds(events):
    """Return the kinds of events; of several alike in a row, one."""
    names = [event["type"] for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def message(text, role="user"):
    return {"role": role, "content": text}


def test_response_is_the_engines(client, llm):
    conversation = [message("Be kind.", "system"), message(TEXT)]
    params = SamplingParams(temperature=0, max_tokens=12)
    prompt = llm.encode_chat(conversation)
    expected = llm.generate([prompt], params)[0].outputs[0]
    reply = respond(client, TEXT, instructions="Be kind.", metadata={"a": "b"}, **GREEDY)
    (item,) = reply["output"]
    assert item["content"] == [
        {"type": "output_text", "text": expected.text, "annotations": [], "logprobs": []}
    ]
    assert (reply["object"], reply["model"], reply["status"]) == ("response", NAME, "incomplete")
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    usage = reply["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(prompt), 12)
    assert usage["total_tokens"] == len(prompt) + 12
    assert (reply["store"], reply["metadata"]) == (False, {"a": "b"})


def test_stream_tells_in_order_how_the_whole_comes_to_be(client):
    whole = respond(client, TEXT, **GREEDY)
    events = events_of(client, TEXT, **GREEDY)
    assert kinds(events) == [*MESSAGE_EVENTS, "response.incomplete"]
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == whole["output"][0]["content"][0]["text"]
    last = events[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert len({e["item_id"] for e in events if "item_id" in e}) == 1


def test_items_are_a_conversation(client):
    said = [message("One."), message("Two.", "assistant"), message("Three.")]
    chat = client.chat(said, temperature=0, max_tokens=12)["choices"][0]["message"]["content"]
    parts = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One."}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Two.", "annotations": []}],
        },
        message("Three."),
    ]
    for items in (said, parts):
        reply = respond(client, items, **GREEDY)
        assert reply["output"][0]["content"][0]["text"] == chat


def test_calls_and_their_results_go_round(client):
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 100}
    fields |= {"parallel_tool_calls": False}
    reply = respond(client, TEXT, **fields)
    (call,) = reply["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"])["city"] in ("Bern", "Basel")
    assert reply["status"] == "completed"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Warm."}
    again = respond(client, [message(TEXT), call, result], tools=[WEATHER], **GREEDY)
    assert again["usage"]["input_tokens"] > reply["usage"]["input_tokens"]
    choice = {"type": "function", "name": "weather"}
    events = events_of(client, TEXT, **fields | {"tool_choice": choice})
    assert kinds(events) == CALL_EVENTS
    (item,) = events[-1]["response"]["output"]
    assert json.loads(item["arguments"])["city"] in ("Bern", "Basel")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "no"}]},
            "input[0].arguments",
        ),
        ({"tools": [WEATHER | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x" * MAX_LEN}, "input"),
        ({"max_output_tokens": MAX_LEN}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "x",
                        "schema": {"type": "no"},
                        "strict": True,
                    }
                }
            },
            "text.format",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(client, fields, param):
    response = client.post(PATH, {"input": TEXT} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "messages" not in error["message"]
    assert "max_tokens" not in error["message"]
    assert ".function" not in error["message"]


def test_many_items_take_no_longer_than_they_must(client):
    calls = [
        {"type": "function_call", "call_id": f"{i}", "name": "f", "arguments": "{}"}
        for i in range(10_000)
    ]
    results = [
        {"type": "function_call_output", "call_id": f"{i}", "output": ""} for i in range(10_000)
    ]
    begun_s = time.monotonic()
    response = client.post(PATH, {"input": calls + results})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert time.monotonic() - begun_s < 5


def test_openais_client_parses_responses(server):
    reply = server.responses.parse(model=NAME, input=TEXT, text_format=Place, temperature=0)
    assert isinstance(reply.output_parsed, Place)
    assert reply.status == "completed"
    assert json.loads(reply.output_text) == reply.output_parsed.model_dump()


def test_openais_client_sends_back_what_it_got(server):
    fields = {"model": NAME, "tools": [openai.pydantic_function_tool(Place)]}
    first = server.responses.parse(
        input=TEXT, tool_choice="required", parallel_tool_calls=False, **fields
    )
    (call,) = first.output
    assert isinstance(call.parsed_arguments, Place)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Near."}
    asked = [message(TEXT), *first.output, result]
    second = server.responses.create(model=NAME, input=asked, max_output_tokens=5)
    asked += [*second.output, message("And then?")]
    third = server.responses.create(model=NAME, input=asked, max_output_tokens=5)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_openais_client_streams_responses(server):
    with server.responses.stream(
        model=NAME, input=TEXT, text_format=Place, temperature=0
    ) as stream:
        events = [event.type for event in stream]
        reply = stream.get_final_response()
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"
    assert isinstance(reply.output_parsed, Place)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        server.responses.create(model=NAME, input=TEXT, previous_response_id="resp_1")
