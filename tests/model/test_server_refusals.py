"""What the server refuses: each in OpenAI's form, and the next request is served."""

import json

import pytest

from alpage import LLM
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, service_of

MAX_LEN = 256
MAX_BODY = 64 * 1024
MESSAGES = [{"role": "user", "content": "Hi"}]
IDS = [5, 6, 7]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
INVALID, TYPE, UNKNOWN = "invalid_value", "invalid_type", "unknown_parameter"
UNSUPPORTED, MISSING, BROKEN = (
    "unsupported_parameter",
    "missing_required_parameter",
    "invalid_json",
)
CONTEXT = "context_length_exceeded"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=MAX_LEN)
    return LLM(path, kv_memory="256KiB", dtype="float32", device="cpu", max_num_seqs=8)


@pytest.fixture(scope="module")
def client(llm):
    with service_of(llm, max_body_bytes=MAX_BODY, max_prompts=8) as service:
        yield Client(service)


def completion(**fields):
    return {"prompt": IDS, "max_tokens": 2} | fields


def chat(**fields):
    return {"messages": MESSAGES, "max_tokens": 2} | fields


def said(message):
    return chat(messages=[message])


# Path, body, param, code; all of them 400.
BAD_FIELDS = {
    "n is zero": (COMPLETIONS, completion(n=0), "n", INVALID),
    "n is hostile": (COMPLETIONS, completion(n=10**9), "n", INVALID),
    "n is beyond the engine": (COMPLETIONS, completion(n=64), "n", INVALID),
    "n is beyond a word": (COMPLETIONS, completion(n=10**30), "n", INVALID),
    "n is no number": (COMPLETIONS, completion(n="2"), "n", TYPE),
    "n is a fraction": (COMPLETIONS, completion(n=1.5), "n", TYPE),
    "n is a truth": (COMPLETIONS, completion(n=True), "n", TYPE),
    "best of fewer": (COMPLETIONS, completion(n=3, best_of=2), "best_of", INVALID),
    "best streamed": (COMPLETIONS, completion(n=1, best_of=2, stream=True), "best_of", INVALID),
    "no tokens": (COMPLETIONS, completion(max_tokens=0), "max_tokens", INVALID),
    "negative tokens": (COMPLETIONS, completion(max_tokens=-1), "max_tokens", INVALID),
    "more at least than at most": (COMPLETIONS, completion(min_tokens=3), "min_tokens", INVALID),
    "temperature below zero": (COMPLETIONS, completion(temperature=-1), "temperature", INVALID),
    "temperature is hot": (CHATS, chat(temperature=1e6), "temperature", INVALID),
    "top_p is zero": (COMPLETIONS, completion(top_p=0), "top_p", INVALID),
    "top_p is above one": (CHATS, chat(top_p=1.1), "top_p", INVALID),
    "top_k": (COMPLETIONS, completion(top_k=-2), "top_k", INVALID),
    "min_p": (COMPLETIONS, completion(min_p=2), "min_p", INVALID),
    "presence": (CHATS, chat(presence_penalty=3), "presence_penalty", INVALID),
    "frequency": (CHATS, chat(frequency_penalty=-3), "frequency_penalty", INVALID),
    "repetition": (COMPLETIONS, completion(repetition_penalty=0), "repetition_penalty", INVALID),
    "seed": (COMPLETIONS, completion(seed=2**64), "seed", INVALID),
    "bias of a stranger": (COMPLETIONS, completion(logit_bias={"300": 1}), "logit_bias", INVALID),
    "bias of no id": (COMPLETIONS, completion(logit_bias={"x": 1}), "logit_bias", TYPE),
    "bias too strong": (COMPLETIONS, completion(logit_bias={"5": 101}), "logit_bias[5]", INVALID),
    "stops": (COMPLETIONS, completion(stop=["a"] * 17), "stop", INVALID),
    "empty stop": (COMPLETIONS, completion(stop=[""]), "stop", INVALID),
    "long stop": (COMPLETIONS, completion(stop="a" * 1025), "stop", INVALID),
    "stop of numbers": (COMPLETIONS, completion(stop=[1]), "stop[0]", TYPE),
    "stop id": (COMPLETIONS, completion(stop_token_ids=[300]), "stop_token_ids", INVALID),
    "logprobs": (COMPLETIONS, completion(logprobs=65), "logprobs", INVALID),
    "negative logprobs": (COMPLETIONS, completion(logprobs=-1), "logprobs", INVALID),
    "streamed logprobs": (COMPLETIONS, completion(logprobs=65, stream=True), "logprobs", INVALID),
    "top logprobs alone": (CHATS, chat(top_logprobs=1), "top_logprobs", INVALID),
    "top logprobs": (CHATS, chat(logprobs=True, top_logprobs=21), "top_logprobs", INVALID),
    "chat logprobs": (CHATS, chat(logprobs=3), "logprobs", TYPE),
    "suffix": (COMPLETIONS, completion(suffix="end"), "suffix", UNSUPPORTED),
    "priority": (COMPLETIONS, completion(priority=10**6), "priority", INVALID),
    "options unstreamed": (COMPLETIONS, completion(stream_options={}), "stream_options", INVALID),
    "unknown option": (
        COMPLETIONS,
        completion(stream=True, stream_options={"x": 1}),
        "stream_options.x",
        UNKNOWN,
    ),
    "usage of parts alone": (
        COMPLETIONS,
        completion(stream=True, stream_options={"continuous_usage_stats": True}),
        "stream_options.continuous_usage_stats",
        INVALID,
    ),
    "unknown field": (COMPLETIONS, completion(max_token=3), "max_token", UNKNOWN),
    "unknown field of a chat": (CHATS, chat(prompt="x"), "prompt", UNKNOWN),
    "no prompt": (COMPLETIONS, {}, "prompt", MISSING),
    "null prompt": (COMPLETIONS, completion(prompt=None), "prompt", TYPE),
    "empty prompts": (COMPLETIONS, completion(prompt=[]), "prompt", INVALID),
    "empty ids": (COMPLETIONS, completion(prompt=[[]]), "prompt", INVALID),
    "empty text": (COMPLETIONS, completion(prompt=""), "prompt", INVALID),
    "ids among texts": (COMPLETIONS, completion(prompt=["a", 5]), "prompt", INVALID),
    "negative id": (COMPLETIONS, completion(prompt=[-1]), "prompt", INVALID),
    "id of no token": (COMPLETIONS, completion(prompt=[[5], [300]]), "prompt", INVALID),
    "nested ids": (COMPLETIONS, completion(prompt=[[[5]]]), "prompt[0][0]", TYPE),
    "prompts": (COMPLETIONS, completion(prompt=[IDS] * 9), "prompt", INVALID),
    "sequences": (COMPLETIONS, completion(prompt=[IDS] * 8, n=6), "prompt", INVALID),
    "prompt is long": (COMPLETIONS, completion(prompt=[5] * 256), "prompt", CONTEXT),
    "text is long": (COMPLETIONS, completion(prompt="a" * 300), "prompt", CONTEXT),
    "text is very long": (COMPLETIONS, completion(prompt="a" * 9000), "prompt", CONTEXT),
    "answer is long": (COMPLETIONS, completion(max_tokens=254), "prompt", CONTEXT),
    "chat is long": (CHATS, said({"role": "user", "content": "a" * 300}), "messages", CONTEXT),
    "no pages for it": (COMPLETIONS, completion(n=8, max_tokens=250), None, "out_of_memory"),
    "no messages": (CHATS, {}, "messages", MISSING),
    "empty messages": (CHATS, chat(messages=[]), "messages", INVALID),
    "unknown role": (CHATS, said({"role": "me", "content": ""}), "messages[0].role", TYPE),
    "no role": (CHATS, said({"content": ""}), "messages[0].role", MISSING),
    "no content": (CHATS, said({"role": "user"}), "messages[0].content", INVALID),
    "image": (
        CHATS,
        said({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        "messages[0].content[0].type",
        TYPE,
    ),
    "message of a tool": (
        CHATS,
        said({"role": "tool", "content": "4", "tool_call_id": "1"}),
        "messages[0].tool_call_id",
        INVALID,
    ),
    "two ends of a chat": (
        CHATS,
        chat(continue_final_message=True, add_generation_prompt=True),
        "continue_final_message",
        INVALID,
    ),
    "tools": (CHATS, chat(tools=[{"type": "function"}]), "tools[0].function", MISSING),
    "tool choice": (CHATS, chat(tool_choice="required"), "tool_choice", INVALID),
    "functions": (CHATS, chat(functions=[{}]), "functions", UNSUPPORTED),
    "format": (
        CHATS,
        chat(response_format={"type": "xml"}),
        "response_format",
        UNSUPPORTED,
    ),
    "max tokens of a chat": (
        CHATS,
        chat(max_completion_tokens=0),
        "max_completion_tokens",
        INVALID,
    ),
    "beams that are drawn": (
        COMPLETIONS,
        completion(use_beam_search=True, seed=1),
        "seed",
        UNSUPPORTED,
    ),
    "beams with logprobs": (
        COMPLETIONS,
        completion(use_beam_search=True, logprobs=1),
        "logprobs",
        UNSUPPORTED,
    ),
    "penalty without beams": (
        COMPLETIONS,
        completion(length_penalty=1.0),
        "length_penalty",
        INVALID,
    ),
    "neither text nor chat": ("/tokenize", {}, "prompt", INVALID),
    "both": ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", INVALID),
    "no tokens to join": ("/detokenize", {}, "tokens", MISSING),
    "token of no text": ("/detokenize", {"tokens": [300]}, "tokens", INVALID),
}

BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "two values": b'{"prompt": "a"} {}',
    "not a number": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "half a surrogate pair": b'{"prompt": "\\ud800"}',
    "no UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "deep": b'{"messages": [], "functions": ' + b"[" * 60_000,
}


def refused(response, status, param, code, kind="invalid_request_error"):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert len(error["message"]) > 10
    return error["message"]


@pytest.fixture(autouse=True)
def next_one_is_served(client, llm):
    yield
    assert client.complete(IDS, max_tokens=1)["usage"]["completion_tokens"] == 1
    assert not llm.engine.has_unfinished


@pytest.mark.parametrize(("path", "body", "param", "code"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_fields(client, path, body, param, code):
    refused(client.post(path, body), 400, param, code)


@pytest.mark.parametrize("data", BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_bodies(client, data):
    path = CHATS if b"messages" in data else COMPLETIONS
    headers = {"content-type": "application/json"}
    refused(client.post(path, content=data, headers=headers), 400, None, BROKEN)


def test_numbers_beyond_all(client):
    data = b'{"prompt": "a", "temperature": 1e999}'
    headers = {"content-type": "application/json"}
    refused(client.post(COMPLETIONS, content=data, headers=headers), 400, "temperature", TYPE)


@pytest.mark.parametrize("is_counted", [True, False])
def test_large_bodies(client, is_counted):
    """Whether the client says how long it is, or not."""
    data = json.dumps(completion(prompt="a" * MAX_BODY)).encode()

    async def parts():
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    response = client.post(COMPLETIONS, content=data if is_counted else parts())
    message = refused(response, 413, None, "request_too_large")
    assert str(MAX_BODY) in message


def test_other_kinds_of_bodies(client):
    headers = {"content-type": "text/plain"}
    refused(client.post(COMPLETIONS, content=b"{}", headers=headers), 415, None, None)


@pytest.mark.parametrize("path", [COMPLETIONS, CHATS, "/tokenize", "/detokenize"])
def test_unknown_models(client, path):
    body = {
        COMPLETIONS: completion(),
        CHATS: chat(),
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [5]},
    }[path]
    response = client.post(path, body | {"model": "gpt-4"})
    assert "'gpt-4'" in refused(response, 404, "model", "model_not_found")
    assert client.post(path, body | {"model": NAME}).status_code == 200


def test_unknown_model_card(client):
    refused(client.get("/v1/models/gpt-4"), 404, "model", "model_not_found")


def test_unknown_routes(client):
    refused(client.get("/v1/nothing"), 404, None, "unknown_url")
    response = client.get(COMPLETIONS)
    refused(response, 405, None, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_keys(llm):
    with service_of(llm, api_keys=("first", "second")) as service:
        client = Client(service)
        for header in ("", "first", "Bearer", "Bearer wrong", "Basic first", "Bearer firs\xe9"):
            response = client.get("/v1/models", headers={"authorization": header.encode("latin-1")})
            refused(response, 401, None, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        refused(client.get("/v1/nothing"), 401, None, "invalid_api_key")
        for key in ("first", "second"):
            headers = {"authorization": f"Bearer {key}"}
            assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.get("/health").status_code == 200


def test_models_without_a_chat_template(tmp_path):
    make_tiny_llama(tmp_path, with_chat=False)
    llm = LLM(tmp_path, kv_memory="256KiB", dtype="float32", device="cpu")
    with service_of(llm) as service:
        client = Client(service)
        refused(client.post(CHATS, chat()), 400, "chat_template", "unsupported")
