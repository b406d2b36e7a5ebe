"""`/v1/embeddings`: the state of each prompt's last token, as transformers has it, of length 1."""

import base64
import struct

import openai
import pytest
import torch

from alpage import LLM, SamplingParams
from alpage.errors import InvalidValue
from alpage.serve import readout
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, process_of, service_of

PATH = "/v1/embeddings"
MAX_LEN = 256
TEXT = "Hello there"
LONG = [5 + i % 40 for i in range(60)]
WIDTH = 64
GREEDY = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def oracle_and_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    return make_tiny_llama(path, max_position_embeddings=MAX_LEN), path


@pytest.fixture(
    scope="module",
    params=[{}, {"max_num_batched_tokens": 16, "max_num_seqs": 4}],
    ids=["whole", "chunks"],
)
def llm(request, oracle_and_path):
    _, path = oracle_and_path
    return LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", **request.param)


@pytest.fixture(scope="module")
def client(llm):
    with service_of(llm) as service:
        yield Client(service)


@pytest.fixture(scope="module")
def expected(oracle_and_path):
    """The same of transformers."""
    oracle, _ = oracle_and_path

    def embedding(ids):
        with torch.no_grad():
            state_D = oracle.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return (state_D / state_D.norm()).tolist()

    return embedding


def embed(client, asked, **fields):
    response = client.post(PATH, {"input": asked} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_embeddings_equal_transformers(client, llm, expected):
    ids = llm.tokenizer.encode(TEXT, add_special_tokens=True)
    # Twice: the second time the prompts are in the prefix cache.
    for _ in range(2):
        reply = embed(client, [LONG, ids, [7]])
        assert [entry["index"] for entry in reply["data"]] == [0, 1, 2]
        for entry, prompt in zip(reply["data"], (LONG, ids, [7]), strict=True):
            assert entry["embedding"] == pytest.approx(expected(prompt), abs=1e-5)
    num_tokens = len(LONG) + len(ids) + 1
    assert reply["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (reply["object"], reply["model"]) == ("list", NAME)


def test_nothing_is_drawn(client, llm, expected, monkeypatch):
    before = client.metrics()
    is_called = []
    monkeypatch.setattr(readout, "sample", lambda *_: is_called.append("sampler"))
    for view in llm.engine.runner.views:
        monkeypatch.setattr(view.model, "logits", lambda *_: is_called.append("vocabulary"))
    prompt = [11] * MAX_LEN
    (entry,) = embed(client, prompt)["data"]
    assert entry["embedding"] == pytest.approx(expected(prompt), abs=1e-5)
    assert not is_called
    monkeypatch.undo()
    changed = {key: value - before[key] for key, value in client.metrics().items()}
    assert changed["alpage_prompt_tokens_total",] == MAX_LEN
    assert changed["alpage_requests_finished_total", "length"] == 1
    assert changed["alpage_generated_tokens_total",] == 0
    assert changed["alpage_time_to_first_token_seconds_count",] == 0
    # A prompt and a text side by side: the one without draws is no row of the other's.
    params = [SamplingParams(max_tokens=0, has_embedding=True), GREEDY]
    mixed = llm.generate([LONG, [7]], params)
    (alone,) = llm.generate([[7]], GREEDY)
    assert mixed[1].outputs == alone.outputs
    assert mixed[0].outputs[0].token_ids == ()
    assert mixed[0].outputs[0].finish_reason == "length"
    assert mixed[0].metrics.first_token_s is None


def test_inputs_in_every_form(client, llm):
    ids = llm.tokenizer.encode(TEXT, add_special_tokens=True)
    (first,) = embed(client, TEXT)["data"]
    assert len(first["embedding"]) == WIDTH
    for asked in ([TEXT], ids, [ids]):
        (other,) = embed(client, asked)["data"]
        assert other["embedding"] == pytest.approx(first["embedding"], abs=1e-5)
    (coded,) = embed(client, TEXT, encoding_format="base64")["data"]
    numbers = struct.unpack(f"<{WIDTH}f", base64.b64decode(coded["embedding"]))
    assert numbers == pytest.approx(first["embedding"], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "x"]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": [5] * (MAX_LEN + 1)}, "input"),
        ({"input": "x" * 10_000}, "input"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_cannot_be_is_refused(client, fields, param):
    response = client.post(PATH, {"input": TEXT} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert "prompt" not in response.json()["error"]["message"]


def test_embeddings_offline(llm, expected):
    params = SamplingParams(max_tokens=3, n=2, has_embedding=True)
    (output,) = llm.generate([LONG], params)
    state_D = torch.tensor(output.embedding)
    assert (state_D / state_D.norm()).tolist() == pytest.approx(expected(LONG), abs=1e-5)
    assert llm.generate([LONG], SamplingParams(max_tokens=1))[0].embedding is None


def test_a_model_cut_over_devices_has_none(oracle_and_path):
    _, path = oracle_and_path
    llm = LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", devices=2)
    with pytest.raises(InvalidValue, match="not cut over devices"):
        llm.generate([LONG], SamplingParams(has_embedding=True))


def test_openais_client_has_embeddings(oracle_and_path, expected):
    _, path = oracle_and_path
    with (
        process_of(path) as process,
        openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as server,
    ):
        # It asks for base64 of its own accord.
        reply = server.embeddings.create(model=NAME, input=LONG)
        assert reply.data[0].embedding == pytest.approx(expected(LONG), abs=1e-5)
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            server.embeddings.create(model=NAME, input=LONG, dimensions=4)
