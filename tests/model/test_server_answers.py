"""The server's answers: the engine's tokens, in OpenAI's forms, whole and streamed."""

import pytest

from alpage import LLM, BeamSearchParams, SamplingParams
from alpage.version import __version__
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, service_of

TEXT = "Hello there"
IDS = [5, 6, 7, 8, 9]
MAX_LEN = 256
MESSAGES = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=MAX_LEN)
    return LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=16)


@pytest.fixture(scope="module")
def client(llm):
    with service_of(llm) as service:
        yield Client(service)


@pytest.fixture(scope="module")
def oracle(llm, client):
    """What the engine says by itself; the loop is idle meanwhile."""

    def texts(prompt, params):
        return llm.generate([prompt], params)[0]

    return texts


def greedy(num_tokens=12, **others):
    return SamplingParams(temperature=0, max_tokens=num_tokens, **others)


def streamed(parts, *, get):
    """Return the text and finish reason of each choice, joined from a stream."""
    texts, reasons = {}, {}
    for part in parts:
        for choice in part["choices"]:
            index = choice["index"]
            assert index not in reasons, "something came after the end"
            texts[index] = texts.get(index, "") + get(choice)
            if choice["finish_reason"] is not None:
                reasons[index] = choice["finish_reason"]
    return [(texts[index], reasons[index]) for index in sorted(texts)]


# -- completions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
def test_completion_is_the_engines(client, oracle, prompt):
    expected = oracle(prompt, greedy())
    reply = client.complete(prompt, temperature=0, max_tokens=12, return_token_ids=True)
    (choice,) = reply["choices"]
    assert choice["token_ids"] == list(expected.outputs[0].token_ids)
    assert choice["prompt_token_ids"] == list(expected.prompt_token_ids)
    assert choice["text"] == expected.outputs[0].text
    assert (reply["object"], reply["model"], choice["finish_reason"]) == (
        "text_completion",
        NAME,
        "length",
    )
    num_prompt = len(expected.prompt_token_ids)
    usage = reply["usage"]
    assert usage.pop("prompt_tokens_details")["cached_tokens"] < num_prompt
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 12,
        "total_tokens": num_prompt + 12,
    }


def test_completion_is_as_long_as_openais_by_default(client):
    assert client.complete(TEXT, ignore_eos=True)["usage"]["completion_tokens"] == 16
    almost = [5] * (MAX_LEN - 3)
    assert client.complete(almost, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_batches_of_prompts_keep_their_order(client, oracle):
    prompts = [TEXT, IDS, "Another", IDS]
    reply = client.complete(prompts, temperature=0, max_tokens=5, n=2)
    expected = [oracle(prompt, greedy(5)).outputs[0].text for prompt in prompts for _ in range(2)]
    assert [choice["text"] for choice in reply["choices"]] == expected
    assert [choice["index"] for choice in reply["choices"]] == list(range(8))


def test_streamed_completion_joins_to_the_whole(client):
    body = {"prompt": [TEXT, IDS], "temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 20}
    whole = client.complete(**body)
    parts = client.stream("/v1/completions", body | {"stream_options": {"include_usage": True}})
    expected = [(choice["text"], choice["finish_reason"]) for choice in whole["choices"]]
    assert streamed(parts, get=lambda choice: choice["text"]) == expected
    assert len(parts) > 20
    *others, last = parts
    assert last["choices"] == []
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][count] == whole["usage"][count]
    assert {part["usage"] for part in others} == {None}
    assert len({part["id"] for part in parts}) == 1


def test_stream_says_nothing_of_usage_unless_asked(client):
    body = {"prompt": TEXT, "max_tokens": 3}
    parts = client.stream("/v1/completions", body)
    assert not any("usage" in part for part in parts)
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = client.stream(
        "/v1/completions",
        body | {"stream_options": options, "ignore_eos": True, "return_token_ids": True},
    )
    assert [part["usage"]["completion_tokens"] for part in parts] == [1, 2, 3, 3]


def test_stop_strings_end_the_text(client, oracle):
    text = oracle(TEXT, greedy(40)).outputs[0].text
    stop = text[10:13]
    expected = text[: text.index(stop)]
    body = {"prompt": TEXT, "temperature": 0, "max_tokens": 40, "stop": [stop]}
    (choice,) = client.complete(**body)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        expected,
        "stop",
        stop,
    )
    parts = client.stream("/v1/completions", body)
    assert streamed(parts, get=lambda choice: choice["text"]) == [(expected, "stop")]


def test_params_reach_the_engine(client, oracle):
    fields = {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "seed": 7,
        "min_tokens": 4,
        "max_tokens": 12,
    }
    expected = oracle(IDS, SamplingParams(**fields, logit_bias={40: 3.0}, best_of=3)).outputs[0]
    reply = client.complete(IDS, **fields, logit_bias={"40": 3.0}, best_of=3, return_token_ids=True)
    assert reply["choices"][0]["token_ids"] == list(expected.token_ids)


def test_logprobs_are_aligned_with_the_text(client, oracle):
    expected = oracle(TEXT, greedy(6, logprobs=3))
    (choice,) = client.complete(TEXT, temperature=0, max_tokens=6, logprobs=3)["choices"]
    logprobs, output = choice["logprobs"], expected.outputs[0]
    assert logprobs["token_logprobs"] == pytest.approx(
        [
            entry[token].logprob
            for token, entry in zip(output.token_ids, output.logprobs, strict=True)
        ],
        abs=1e-5,
    )
    assert [len(top) for top in logprobs["top_logprobs"]] == [3] * 6
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_echo_begins_with_the_prompt(client, oracle, max_tokens, is_streamed):
    expected = oracle(TEXT, greedy(max(1, max_tokens), logprobs=1, prompt_logprobs=1))
    body = {
        "prompt": TEXT,
        "temperature": 0,
        "max_tokens": max_tokens,
        "echo": True,
        "logprobs": 1,
    }
    if is_streamed:
        choices = [p["choices"][0] for p in client.stream("/v1/completions", body)]
    else:
        choices = client.complete(**body)["choices"]
    own_text = expected.outputs[0].text if max_tokens else ""
    assert "".join(choice["text"] for choice in choices) == TEXT + own_text
    logprobs = {
        key: [entry for choice in choices for entry in (choice["logprobs"] or {key: []})[key]]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    # A token a byte.
    assert logprobs["tokens"][: len(TEXT)] == list(TEXT)
    assert logprobs["text_offset"][: len(TEXT)] == list(range(len(TEXT)))
    assert {len(values) for values in logprobs.values()} == {len(TEXT) + max_tokens}
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    ids = expected.prompt_token_ids
    assert logprobs["token_logprobs"][1 : len(TEXT)] == pytest.approx(
        [
            entry[token].logprob
            for token, entry in zip(ids[1:], expected.prompt_logprobs[1:], strict=True)
        ],
        abs=1e-5,
    )
    assert choices[-1]["finish_reason"] == "length"


def test_echo_without_tokens_counts_none(client):
    usage = client.complete(IDS, max_tokens=0, echo=True)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 0)


def test_beam_search_is_the_engines(client, oracle):
    expected = oracle(IDS, BeamSearchParams(beam_width=4, n=2, max_tokens=8, length_penalty=0.5))
    body = {
        "prompt": IDS,
        "use_beam_search": True,
        "best_of": 4,
        "n": 2,
        "max_tokens": 8,
        "length_penalty": 0.5,
        "temperature": 0,
        "return_token_ids": True,
    }
    found = [choice["token_ids"] for choice in client.complete(**body)["choices"]]
    assert found == [list(output.token_ids) for output in expected.outputs]
    assert found[0] != found[1]
    widths = client.complete(IDS, use_beam_search=True, n=3, max_tokens=4)["choices"]
    assert len(widths) == 3


# -- chats -----------------------------------------------------------------------------------------


def test_chat_is_the_engines(client, llm, oracle):
    expected = oracle(llm.encode_chat(MESSAGES), greedy(10)).outputs[0]
    reply = client.chat(MESSAGES, temperature=0, max_tokens=99, max_completion_tokens=10)
    (choice,) = reply["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": expected.text,
        "refusal": None,
    }
    assert choice["finish_reason"] == expected.finish_reason
    assert reply["object"] == "chat.completion"
    assert reply["usage"]["prompt_tokens"] == len(llm.encode_chat(MESSAGES))


def test_chat_goes_on_as_far_as_the_model_can(client, llm):
    reply = client.chat(MESSAGES, temperature=0, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == MAX_LEN
    assert reply["choices"][0]["finish_reason"] == "length"


def test_parts_of_a_message_are_joined(client):
    parts = [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]
    fields = {"temperature": 0, "max_tokens": 5}
    expected = client.chat(MESSAGES, **fields)["choices"]
    assert client.chat([{"role": "user", "content": parts}], **fields)["choices"] == expected


def test_developer_is_a_system(client):
    fields = {"temperature": 0, "max_tokens": 5}
    first, second = (
        client.chat([{"role": role, "content": "Be kind."}, *MESSAGES], **fields)["choices"]
        for role in ("system", "developer")
    )
    assert first == second


def test_streamed_chat_joins_to_the_whole(client):
    body = {"messages": MESSAGES, "temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 20}
    whole = client.chat(**body)
    parts = client.stream(
        "/v1/chat/completions", body | {"stream_options": {"include_usage": True}}
    )
    expected = [(c["message"]["content"], c["finish_reason"]) for c in whole["choices"]]
    assert streamed(parts, get=lambda choice: choice["delta"].get("content", "")) == expected
    firsts = [
        next(p["choices"][0] for p in parts if p["choices"] and p["choices"][0]["index"] == index)
        for index in range(2)
    ]
    assert [first["delta"] for first in firsts] == [{"role": "assistant", "content": ""}] * 2
    assert parts[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


@pytest.mark.parametrize("num_top", [None, 0, 3])
def test_chat_logprobs(client, num_top):
    fields = {} if num_top is None else {"top_logprobs": num_top}
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 4, "logprobs": True} | fields
    (choice,) = client.chat(**body)["choices"]
    content = choice["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [num_top or 0] * 4
    for entry in content:
        assert entry["logprob"] <= 0
        if num_top:
            # Greedy: the likeliest is the one.
            assert entry["top_logprobs"][0]["bytes"] == entry["bytes"]
    parts = client.stream("/v1/chat/completions", body)
    choices = [part["choices"][0] for part in parts]
    assert [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]] == content


# -- the rest --------------------------------------------------------------------------------------


def test_fields_without_effect_are_taken(client):
    client.chat(
        MESSAGES,
        max_tokens=1,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=False,
        tool_choice="none",
        tools=[],
        response_format={"type": "text"},
        seed=None,
        stop=None,
        logit_bias=None,
        stream=False,
    )


def test_tokens_and_back(client, llm):
    reply = client.post("/tokenize", {"prompt": TEXT, "return_token_strs": True}).json()
    expected = llm.tokenizer.encode(TEXT, add_special_tokens=True)
    assert reply["tokens"] == expected
    assert (reply["count"], reply["max_model_len"]) == (len(expected), MAX_LEN)
    assert len(reply["token_strs"]) == len(expected)
    back = client.post("/detokenize", {"tokens": reply["tokens"], "model": NAME}).json()
    assert back == {"prompt": TEXT}
    reply = client.post("/tokenize", {"messages": MESSAGES}).json()
    assert reply["tokens"] == llm.encode_chat(MESSAGES)


def test_models_are_listed(client):
    reply = client.get("/v1/models").json()
    (card,) = reply["data"]
    assert reply["object"] == "list"
    assert (card["id"], card["object"], card["max_model_len"]) == (NAME, "model", MAX_LEN)
    assert isinstance(card["created"], int)
    assert client.get(f"/v1/models/{NAME}").json() == card


def test_states(client):
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    assert client.get("/version").json() == {"version": __version__}


def test_routes_are_described(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]


def test_answers_have_names(client):
    names = {client.get("/version").headers["x-request-id"] for _ in range(3)}
    assert len(names) == 3
