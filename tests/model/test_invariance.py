"""The same bits in any company, and an engine that refuses to start where that does not hold."""

import pytest
import torch

from alpage import LLM, SamplingParams, native
from alpage.errors import Unsupported
from tiny_llama import make_tiny_llama

needs_kernels = pytest.mark.skipif(
    not native.has_linear(), reason="the kernels for linear layers are not for this machine"
)
PROMPTS = [[5 + i * j % 90 for i in range(n)] for j, n in enumerate((1, 3, 40, 100, 17, 8), 1)]
PARAMS = [
    SamplingParams(temperature=t, seed=7, max_tokens=30, ignore_eos=True, logprobs=3)
    for t in (0, 1, 0.5, 0, 1, 2)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path)
    return path


def llm_of(model, **settings):
    usual = {"kv_memory": "4MiB", "dtype": "bfloat16", "device": "cpu", "deterministic": True}
    return LLM(model, **(usual | settings))


def bits(outputs):
    return [(out.outputs[0].token_ids, out.outputs[0].logprobs) for out in outputs]


@needs_kernels
@pytest.mark.parametrize("dtypes", [{}, {"quantization": "int8"}, {"kv_dtype": "int8"}], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 8, "max_num_seqs": 4},
        {"max_num_batched_tokens": 33, "max_num_seqs": 2, "has_prefix_cache": False},
        {"kv_memory": "52KiB", "max_model_len": 160, "swap_memory": 0},
        {"kv_memory": "52KiB", "max_model_len": 160, "swap_memory": "52KiB"},
        {"page_size": 32},
    ],
    ids=["batch", "chunks", "few at a time", "recomputed", "swapped", "large pages"],
)
def test_same_bits(model, settings, dtypes):
    alone = llm_of(model, **dtypes)
    expected = [
        one
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
        for one in bits(alone.generate([prompt], params))
    ]
    if "kv_dtype" in dtypes and "kv_memory" in settings:
        settings = settings | {"kv_memory": "34KiB"}
    found = llm_of(model, **dtypes, **settings)
    assert bits(found.generate(PROMPTS, PARAMS)) == expected
    scheduler = found.engine.scheduler
    assert (scheduler.num_preemptions > 0) == ("swap_memory" in settings)
    assert (scheduler.memories[0].num_swapped_pages > 0) == (settings.get("swap_memory", 0) != 0)


@needs_kernels
def test_check_leaves_nothing_behind(model):
    llm = llm_of(model)
    assert not llm.engine.has_unfinished
    output = llm.generate([PROMPTS[3]], PARAMS[0])[0]
    assert output.metrics.cached_tokens == 0


@needs_kernels
def test_machine_that_depends_on_the_batch_is_refused(model, monkeypatch):
    plain = native.linear

    def by_rows(x, weight, bias_N=None):
        return plain(x, weight, bias_N) + 1e-2 * (len(x) > 2)

    monkeypatch.setattr("alpage.models.model.compiled", lambda *_: None)
    monkeypatch.setattr(native, "linear", by_rows)
    with pytest.raises(Unsupported, match="deterministic"):
        llm_of(model)


@needs_kernels
def test_logprobs_do_not_depend_on_threads(model):
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = bits(llm_of(model).generate(PROMPTS, PARAMS))
    finally:
        torch.set_num_threads(usual)
    assert bits(llm_of(model).generate(PROMPTS, PARAMS)) == one
