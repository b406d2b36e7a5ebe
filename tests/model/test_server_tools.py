"""Tools over HTTP: calls that must be made, calls that are found, and calls in conversations.

The model is random: what a trained one would say of its own accord, this one says by a guide.
"""

import json
from unittest.mock import patch

import openai
import pytest
from pydantic import BaseModel

from alpage import LLM, Guide, SamplingParams
from alpage.errors import InvalidValue, Unsupported
from alpage.models import Tokenizer
from alpage.serve.http import Service
from alpage.serve.http.tool_calls import CLOSE, OPEN
from alpage.serve.http.tool_forms import tool_guide
from tiny_llama import CHAT_TEMPLATE, make_tiny_llama
from tiny_server import NAME, Client, process_of, service_of

MESSAGES = [{"role": "user", "content": "Is it warm in Bern?"}]
CHATS = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"$ref": "#/$defs/City"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Bern", "Basel"]}},
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
TOOLS = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = {"name": "weather", "arguments": {"city": "Bern", "days": 2}}

# What the templates of models do with tools, and nothing else.
_BEGIN = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
_CALLS = "{% for c in m.tool_calls or [] %}%s{% endfor %}"
_LOOP = "{% for m in messages %}<|user|>{{ m.role }}{{ m.content }}" + _CALLS + "</s>{% endfor %}"
TEMPLATES = {
    "none": CHAT_TEMPLATE,
    "hermes": _BEGIN + _LOOP.replace("%s", "<tool_call>{{ c.function | tojson }}</tool_call>"),
    "llama": _BEGIN
    + _LOOP.replace("%s", '{% set role = "ipython" %}{{ c.function.arguments.city }}'),
    "mistral": _BEGIN + _LOOP.replace("%s", "[TOOL_CALLS][{{ c.function | tojson }}]"),
}
SPOKEN = {
    "none": f"{OPEN}\n{json.dumps(CALL)}\n{CLOSE}",
    "hermes": f"{OPEN}\n{json.dumps(CALL)}\n{CLOSE}",
    "llama": json.dumps({"name": "weather", "parameters": CALL["arguments"]}),
    "mistral": f"[TOOL_CALLS][{json.dumps(CALL)}]",
}


@pytest.fixture(scope="module", params=TEMPLATES)
def style(request):
    return request.param


def make_path(path, style):
    make_tiny_llama(path, max_position_embeddings=4096)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATES[style]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def llm(tmp_path_factory, style):
    path = make_path(tmp_path_factory.mktemp(style), style)
    return LLM(path, kv_memory="16MiB", dtype="float32", device="cpu", max_num_seqs=8)


@pytest.fixture(scope="module")
def client(llm):
    with service_of(llm) as service:
        yield Client(service)


def is_weather(call):
    assert call["type"] == "function"
    assert isinstance(call["id"], str)
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "weather"
    assert arguments["city"] in ("Bern", "Basel")
    return list(arguments) == ["city", "days"] and 1 <= arguments["days"] <= 7


def calls_of(parts):
    """Put the calls of a stream together: the first part of each names it, the others go on."""
    calls = []
    for part in parts:
        for call in part["choices"][0]["delta"].get("tool_calls", []):
            if call.pop("index") == len(calls):
                calls.append(call)
            else:
                assert call.keys() == {"function"}
                assert call["function"].keys() == {"arguments"}
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return calls


# -- calls that must be made -----------------------------------------------------------------------


def test_named_tool_is_called_once(client):
    reply = client.chat(MESSAGES, tools=TOOLS, tool_choice=NAMED, n=3, max_tokens=1500)
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert is_weather(call)


@pytest.mark.parametrize("is_parallel", [True, False])
def test_required_calls_are_valid(client, is_parallel):
    reply = client.chat(
        MESSAGES,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=is_parallel,
        n=6,
        max_tokens=3000,
    )
    names = set()
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        calls = choice["message"]["tool_calls"]
        assert 1 <= len(calls) <= (16 if is_parallel else 1)
        assert len({call["id"] for call in calls}) == len(calls)
        names |= {call["function"]["name"] for call in calls}
        for call in calls:
            is_clock = call["function"]["name"] == "clock"
            assert json.loads(call["function"]["arguments"]) == {} if is_clock else is_weather(call)
    assert names == {"weather", "clock"}


def test_streamed_calls_are_the_whole(client):
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "seed": 5}
    body["max_tokens"] = 3000
    (choice,) = client.chat(**body)["choices"]
    parts = client.stream(CHATS, body)
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    calls = calls_of(parts)
    for call in (*calls, *choice["message"]["tool_calls"]):
        del call["id"]
    assert calls == choice["message"]["tool_calls"]
    assert not any(delta.get("content") for delta in deltas)
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons[-1] == choice["finish_reason"] == "tool_calls"
    assert set(reasons[:-1]) == {None}


def test_arguments_come_while_they_are_made(client):
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED, "max_tokens": 1500}
    parts = client.stream(CHATS, body | {"seed": 3})
    deltas = [p["choices"][0]["delta"].get("tool_calls", [None])[0] for p in parts]
    first, *others = [delta["function"] for delta in deltas if delta]
    assert (first["name"], first["arguments"]) == ("weather", "")
    assert len(others) > 3
    assert all(other["arguments"] for other in others)
    assert is_weather(calls_of(parts)[0])


def test_call_that_is_cut_has_what_came_of_it(client):
    """As much whole as in pieces; nobody is told that it is complete."""
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED, "seed": 3}
    full = client.chat(**body, max_tokens=1500)["usage"]["completion_tokens"]
    body["max_tokens"] = full - 3
    (choice,) = client.chat(**body)["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    parts = client.stream(CHATS, body)
    assert calls_of(parts)[0]["function"] == call["function"]
    assert parts[-1]["choices"][0]["finish_reason"] == "length"


def test_call_that_is_cut_before_its_name_is_no_call(client):
    reply = client.chat(MESSAGES, tools=TOOLS, tool_choice=NAMED, max_tokens=4)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]


def test_answer_has_its_form_where_it_is_no_call(client):
    schema = {
        "type": "object",
        "properties": {"warm": {"type": "boolean"}},
        "required": ["warm"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    reply = client.chat(
        MESSAGES, tools=TOOLS, response_format=form, n=8, max_tokens=1500, temperature=2.0
    )
    for choice in reply["choices"]:
        if choice["finish_reason"] == "tool_calls":
            assert choice["message"]["tool_calls"]
        else:
            assert list(json.loads(choice["message"]["content"])) == ["warm"]


# -- calls that are found --------------------------------------------------------------------------


def test_call_of_a_models_own_accord_is_found(llm, style):
    """The service's form is taken away behind its back, and one put in that says the call."""
    said = Guide.choice([SPOKEN[style]])

    async def form(*_):
        return said

    with service_of(llm) as service, patch.object(Service, "_form", form):
        client = Client(service)
        body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 500}
        (choice,) = client.chat(**body)["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (
            "weather",
            CALL["arguments"],
        )
        parts = client.stream(CHATS, body)
        (streamed,) = calls_of(parts)
        assert streamed["function"] == call["function"]
        # Who may call nothing has said a text.
        (choice,) = client.chat(**(body | {"tool_choice": "none"}))["choices"]
        assert choice["message"]["content"] == SPOKEN[style]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("is_parallel", [True, False])
def test_call_that_a_model_begins_is_held_to_its_schema(llm, is_parallel):
    """Texts are taken out of the form behind the service's back, so that there are calls."""

    def shortened(*args):
        guide, param = tool_guide(*args)
        assert guide.source.count("(?s:.*)") == 1 + len(TOOLS)
        source = guide.source.replace("SAID: /(?s:.*)/", 'SAID: ""').replace("(?s:.*)", "")
        return Guide.grammar(source), param

    with service_of(llm) as service:
        client = Client(service)
        body = {"messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": is_parallel}
        with patch("alpage.serve.http.service.tool_guide", shortened):
            reply = client.chat(**body, n=8, max_tokens=3000, min_tokens=2)
    for choice in reply["choices"]:
        calls = choice["message"]["tool_calls"]
        assert len(calls) == 1 or is_parallel
        whole = calls if choice["finish_reason"] == "tool_calls" else calls[:-1]
        for call in whole:
            is_clock = call["function"]["name"] == "clock"
            assert json.loads(call["function"]["arguments"]) == {} if is_clock else is_weather(call)


WRONG = {"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}


def test_schema_that_cannot_be_kept_holds_nobody_unless_it_is_strict(client):
    body = {"messages": MESSAGES, "max_tokens": 3}
    assert client.chat(**body, tools=[CLOCK, WRONG])["choices"]
    assert client.chat(**body, tools=[WRONG], use_beam_search=True)["choices"]
    strict = {"type": "function", "function": WRONG["function"] | {"strict": True}}
    refused = client.post(CHATS, body | {"tools": [CLOCK, strict]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")


def test_text_with_tools_goes_on_behind_its_end_if_it_is_told_to(client, llm):
    body = {"tools": [CLOCK], "max_tokens": 12, "temperature": 0}
    body["logit_bias"] = {str(token): 100 for token in llm.tokenizer.eos_ids}
    assert client.chat(MESSAGES, **body)["usage"]["completion_tokens"] == 1
    reply = client.chat(MESSAGES, **body, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 12
    assert reply["choices"][0]["finish_reason"] == "length"


def test_text_without_calls_is_as_it_was(client):
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 30, "tools": [CLOCK]}
    (choice,) = client.chat(**body)["choices"]
    assert choice["message"]["content"]
    parts = client.stream(CHATS, body)
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
    assert text == choice["message"]["content"]


# -- conversations ---------------------------------------------------------------------------------


def called(arguments='{"city": "Bern", "days": 2}', name="weather"):
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return {"role": "assistant", "content": None, "tool_calls": [call]}


RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "12 degrees"}


def prompt_of(client, llm, messages, **fields):
    body = {"messages": messages, "max_tokens": 1, "return_token_ids": True} | fields
    seen = []
    encode = Tokenizer.encode

    def note(self, text, **arguments):
        seen.append(text)
        return encode(self, text, **arguments)

    with patch.object(Tokenizer, "encode", note):
        assert client.post(CHATS, body).status_code == 200
    return seen[0]


def test_model_sees_tools_calls_and_results(client, llm, style):
    prompt = prompt_of(client, llm, [*MESSAGES, called(), RESULT], tools=TOOLS)
    assert prompt.index("The weather of a city.") < prompt.index("Is it warm")
    assert prompt.index("Is it warm") < prompt.index("Bern", prompt.index("Is it warm") + 20)
    assert prompt.index("12 degrees") > prompt.rindex("Bern")
    if style == "none":
        assert prompt.startswith("<|system|>You can call functions")
        assert f"{OPEN}\n" in prompt
        assert "<|user|><tool_response>\n12 degrees\n</tool_response>" in prompt
    unaware = prompt_of(client, llm, MESSAGES, tools=TOOLS, tool_choice="none")
    assert "weather of a city" not in unaware


def test_words_about_tools_join_the_system_message(client, llm, style):
    if style != "none":
        pytest.skip("the template tells of them")
    system = {"role": "system", "content": "Be brief."}
    prompt = prompt_of(client, llm, [system, *MESSAGES], tools=TOOLS)
    assert prompt.startswith("<|system|>Be brief.\n\nYou can call")
    assert prompt.count("<|system|>") == 1


def test_llm_gives_the_template_the_tools_as_the_server_does(client, llm, style):
    if style == "none":
        with pytest.raises(Unsupported, match="knows"):
            llm.chat(MESSAGES, tools=TOOLS)
        assert llm.encode_chat(MESSAGES, []) == llm.encode_chat(MESSAGES)
        return
    params = SamplingParams(max_tokens=2, temperature=0)
    seen = prompt_of(client, llm, MESSAGES, tools=TOOLS)
    both = llm.chat([MESSAGES, MESSAGES], params, tools=TOOLS)
    for output in both:
        ids = list(output.prompt_token_ids)
        assert ids == llm.tokenizer.encode(seen, add_special_tokens=False)
    assert "weather of a city" in seen
    for wrong in (WEATHER, ["weather"], "weather"):
        with pytest.raises(InvalidValue, match="list of tables"):
            llm.chat(MESSAGES, params, tools=wrong)


# -- what is refused -------------------------------------------------------------------------------


def tool(**fields):
    return {"type": "function", "function": {"name": "f"} | fields}


def deep(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


BAD = {
    "bad name": ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
    "no name": ({"tools": [tool(name="")]}, "tools[0].function.name"),
    "same name": ({"tools": [tool(), tool()]}, "tools[1].function.name"),
    "many": ({"tools": [tool(name=f"f{i}") for i in range(200)]}, "tools"),
    "deep": ({"tools": [tool(parameters=deep(200))]}, "tools[0].function.parameters"),
    "no parameters": ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    "bad schema": (
        {"tools": [tool(parameters={"type": "strin"})], "tool_choice": "required"},
        "tools",
    ),
    "other kind": ({"tools": [{"type": "search", "function": {"name": "f"}}]}, "tools[0].type"),
    "unknown choice": ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
    "choice of none": ({"tool_choice": "required"}, "tool_choice"),
    "choice of another": (
        {"tools": [CLOCK], "tool_choice": NAMED},
        "tool_choice",
    ),
    "beams": ({"tools": TOOLS, "tool_choice": NAMED, "use_beam_search": True}, "tool_choice"),
    "other form": ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    "result of nothing": ({"messages": [*MESSAGES, RESULT]}, "messages[1].tool_call_id"),
    "result without id": (
        {"messages": [*MESSAGES, {"role": "tool", "content": "1"}]},
        "messages[1].tool_call_id",
    ),
    "call of a user": (
        {"messages": [called() | {"role": "user", "content": "x"}]},
        "messages[0].tool_calls",
    ),
    "no arguments": (
        {"messages": [*MESSAGES, called("[1]")]},
        "messages[1].tool_calls[0].function.arguments",
    ),
    "deep arguments": (
        {"messages": [*MESSAGES, called('{"a":' * 500 + "1" + "}" * 500)]},
        "messages[1].tool_calls[0].function.arguments",
    ),
    "very deep arguments": (
        {"messages": [*MESSAGES, called('{"a":' * 100_000)]},
        "messages[1].tool_calls[0].function.arguments",
    ),
}


@pytest.mark.parametrize(("fields", "param"), BAD.values(), ids=BAD)
def test_what_has_no_meaning_is_refused(client, fields, param):
    response = client.post(CHATS, {"messages": MESSAGES, "max_tokens": 4} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert client.complete([5, 6], max_tokens=1)["choices"]


# -- OpenAI's client -------------------------------------------------------------------------------


class Weather(BaseModel):
    city: str
    is_today: bool


def openai_of(process):
    return openai.OpenAI(base_url=process.url + "/v1", api_key="none")


@pytest.mark.slow
def test_openais_client_reads_calls(tmp_path):
    path = make_path(tmp_path, "hermes")
    with process_of(path) as process, openai_of(process) as server:
        bounded = openai.pydantic_function_tool(Weather)
        bounded["function"]["parameters"]["properties"]["city"]["maxLength"] = 5
        request = {
            "model": NAME,
            "messages": MESSAGES,
            "tools": [bounded],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        done = server.chat.completions.parse(**request)
        (call,) = done.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        result = {"role": "tool", "tool_call_id": call.id, "content": "warm"}
        with server.chat.completions.stream(**request) as stream:
            final = stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        assert final.choices[0].finish_reason == "tool_calls"
        said = done.choices[0].message
        for message in (said, said.model_dump()):
            conversation = [*MESSAGES, message, result]
            server.chat.completions.create(model=NAME, max_tokens=2, messages=conversation)
