"""Evaluation over HTTP: what harnesses read of prompts, as lm-eval's `local-completions` does.

They send batches of token ids with `echo` and `logprobs`, add up the log-probabilities of the last
tokens of each, and take a token for the likeliest if its number is exactly the greatest beside it.
"""

import pytest
import torch

from alpage import LLM
from alpage.serve.http.logprobs import Offsets, completion_logprobs
from alpage.serve.outputs import Logprob
from tiny_llama import make_tiny_llama
from tiny_server import Client, service_of

NUM_CONTEXT, NUM_CHOSEN = 5, 6
NUM_PROMPTS = 9


@pytest.fixture(scope="module")
def oracle_and_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    return make_tiny_llama(path), path


@pytest.fixture(scope="module")
def prompts(oracle_and_path):
    """Token ids: contexts of several lengths, behind which is what the model would say, or not."""
    oracle, _ = oracle_and_path
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(NUM_PROMPTS):
        context = torch.randint(6, 262, (1, NUM_CONTEXT + 7 * number), generator=generator)
        whole = oracle.generate(
            context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=NUM_CHOSEN,
            min_new_tokens=NUM_CHOSEN,
            do_sample=False,
        )
        if number % 3 == 0:
            whole[0, -1] = (whole[0, -1] + 40) % 200 + 20
        found.append(whole[0].tolist())
    return found


@pytest.fixture(scope="module")
def expected(oracle_and_path, prompts):
    """Of each prompt, the sum of its chosen tokens' logprobs, and whether all are the likeliest."""
    oracle, _ = oracle_and_path
    found = []
    for ids in prompts:
        with torch.no_grad():
            logprobs_CV = (
                oracle(torch.tensor([ids])).logits[0].log_softmax(-1)[-NUM_CHOSEN - 1 : -1]
            )
        chosen_C1 = torch.tensor(ids[-NUM_CHOSEN:])[:, None]
        is_greedy = bool((logprobs_CV.argmax(-1) == chosen_C1[:, 0]).all())
        found.append((logprobs_CV.gather(1, chosen_C1).sum().item(), is_greedy))
    assert {is_greedy for _, is_greedy in found} == {False, True}
    return found


@pytest.fixture(
    scope="module",
    params=[{}, {"max_num_batched_tokens": 16, "max_num_seqs": 4}, {"has_prefix_cache": False}],
    ids=["whole", "chunks", "no cache"],
)
def client(request, oracle_and_path):
    _, path = oracle_and_path
    llm = LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", **request.param)
    with service_of(llm) as service:
        yield Client(service)


def scores(reply, prompts):
    """Read a reply as the harness does."""
    found = []
    for choice, ids in zip(
        sorted(reply["choices"], key=lambda c: c["index"]), prompts, strict=True
    ):
        logprobs, start = choice["logprobs"], len(ids) - NUM_CHOSEN
        chosen = logprobs["token_logprobs"][start:-1]
        tops = logprobs["top_logprobs"][start:-1]
        assert len(chosen) == NUM_CHOSEN
        is_greedy = all(
            logprob == max(top.values()) for logprob, top in zip(chosen, tops, strict=True)
        )
        found.append((sum(chosen), is_greedy))
    return found


@pytest.mark.parametrize("num_top", [1, 5])
def test_scores_equal_transformers(client, prompts, expected, num_top):
    # Twice: the second time the prompts are in the prefix cache.
    for _ in range(2):
        reply = client.complete(
            prompts, max_tokens=1, logprobs=num_top, echo=True, temperature=0, seed=1234
        )
        found = scores(reply, prompts)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
        assert [total for total, _ in found] == pytest.approx(
            [total for total, _ in expected], abs=1e-4
        )


def test_a_prompt_alone_has_the_same_scores(client, prompts):
    fields = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    together = scores(client.complete(prompts, **fields), prompts)
    alone = [scores(client.complete([ids], **fields), [ids])[0] for ids in prompts]
    assert [flag for _, flag in alone] == [flag for _, flag in together]
    assert [total for total, _ in alone] == pytest.approx(
        [total for total, _ in together], abs=1e-5
    )


class OneName:
    """A tokenizer all of whose tokens are spelled alike."""

    def spelling(self, token):
        return b"a"

    def is_special(self, token):
        return False


def test_of_tokens_with_one_name_the_likeliest_is_shown():
    texts = OneName()
    entry = {7: Logprob(logprob=-0.5, rank=1), 8: Logprob(logprob=-3.0, rank=2)}
    found = completion_logprobs([7], [entry], texts, Offsets(texts, has_special=True))
    assert found.top_logprobs == [{"a": -0.5}]
    assert found.token_logprobs == [-0.5]
