"""Keys and values in 8 bits, through the whole engine."""

import pytest
import torch

from alpage import LLM, BeamSearchParams, SamplingParams
from alpage.errors import Unsupported
from alpage.serve.machine import find_kv_dtype
from tiny_llama import make_tiny_llama

PROMPTS = [[5 + i * j % 90 for i in range(n)] for j, n in enumerate((1, 3, 40, 100, 17), start=1)]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path)
    return path


def llm_of(model, **settings):
    usual = {"kv_memory": "4MiB", "dtype": "float32", "device": "cpu", "kv_dtype": "int8"}
    return LLM(model, notify=lambda line: None, **(usual | settings))


def tokens(outputs):
    return [[one.token_ids for one in output.outputs] for output in outputs]


def logprobs(outputs):
    return [one.outputs[0].cumulative_logprob for one in outputs]


def test_answers_are_the_references(model):
    found = llm_of(model).generate(PROMPTS, GREEDY)
    expected = llm_of(model, attention_backend="reference").generate(PROMPTS, GREEDY)
    assert tokens(found) == tokens(expected)
    assert logprobs(found) == pytest.approx(logprobs(expected), abs=1e-2)


def test_logprobs_are_nearly_those_of_the_models_own_dtype(model):
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def of_prompts(llm):
        return [
            entry[token].logprob
            for out in llm.generate(PROMPTS, params)
            for token, entry in zip(out.prompt_token_ids, out.prompt_logprobs, strict=True)
            if entry is not None
        ]

    exact, found = of_prompts(llm_of(model, kv_dtype=None)), of_prompts(llm_of(model))
    assert found != exact
    assert found == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=4, temperature=1, seed=3, max_tokens=24, ignore_eos=True),
        BeamSearchParams(beam_width=4, max_tokens=24),
    ],
    ids=["samples", "beams"],
)
def test_pages_that_are_shared_and_copied_change_nothing(model, params):
    alone = llm_of(model, has_prefix_cache=False)
    expected = [tokens(alone.generate([prompt], params))[0] for prompt in PROMPTS]
    llm = llm_of(model, max_num_seqs=32)
    assert tokens(llm.generate(PROMPTS, params)) == expected
    again = llm.generate(PROMPTS, params)
    assert tokens(again) == expected
    assert [out.metrics.cached_tokens for out in again] == [len(p) - 1 for p in PROMPTS]
    assert llm.engine.scheduler.memories[0].num_copied_pages > 0


def test_memory_counts_the_scales(model):
    pools = {
        kv_dtype: llm_of(model, kv_dtype=kv_dtype, max_num_seqs=512).engine.runner.pool
        for kv_dtype in (None, "int8")
    }
    head_dim = 16
    for pool in pools.values():
        assert 0 <= 4 * 2**20 - pool.kv_L2PGSK.nbytes < pool.kv_L2PGSK.nbytes // pool.num_pages
    ratio = pools["int8"].num_pages / pools[None].num_pages
    assert ratio == pytest.approx(4 * head_dim / (head_dim + 4), rel=1e-2)


def test_what_cannot_keep_8_bits_says_so(model):
    with pytest.raises(Unsupported, match=r"sdpa keeps keys and values as they come"):
        llm_of(model, attention_backend="sdpa")
    with pytest.raises(Unsupported, match=r"kv_dtype='?int8'?.*CPUs so far"):
        find_kv_dtype("int8", torch.bfloat16, torch.device("cuda"))
