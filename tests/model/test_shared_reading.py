"""What several sequences share is read once: the engine's own steps, as kernels plan them."""

from dataclasses import replace

import pytest
import torch
from benchmarks.attention import make_step

from alpage import LLM, SamplingParams, native
from tiny_llama import make_tiny_llama

pytestmark = pytest.mark.skipif(
    not native.has_linear(), reason="the kernels for linear layers are not for this machine"
)
PREFIX = [5 + 7 * i % 250 for i in range(272)]
HEADS = (4, 2)


def num_splits(step, page_size):
    return native.load().num_splits(step, heads=HEADS, num_pages=1_000_000, page_size=page_size)


def with_own_pages(step):
    """Return the step as if each sequence had copies of its pages."""
    table_BP = torch.arange(step.table_BP.numel()).int().view_as(step.table_BP)
    return replace(step, table_BP=table_BP)


@pytest.mark.parametrize(
    ("prompts", "params"),
    [
        ([[*PREFIX, 5 + i] for i in range(6)], SamplingParams(temperature=0, max_tokens=4)),
        ([[*PREFIX, 5]], SamplingParams(n=6, seed=0, max_tokens=4)),
    ],
    ids=["prompts that begin alike", "samples of one prompt"],
)
def test_decodes_read_a_shared_prefix_once(tmp_path, monkeypatch, prompts, params):
    make_tiny_llama(tmp_path, max_position_embeddings=512)
    llm = LLM(tmp_path, kv_memory="4MiB", dtype="bfloat16", device="cpu", max_num_seqs=8)
    counts = []
    run = native.NativeProgram.run

    def spied(self, outside, arena, kv_L2PGSK, step, kept_B1):
        if step.query_start_B1.tolist() == list(range(7)):  # six decodes and nothing else
            counts.append([num_splits(x, kv_L2PGSK.shape[4]) for x in (step, with_own_pages(step))])
        run(self, outside, arena, kv_L2PGSK, step, kept_B1)

    llm.generate([PREFIX], SamplingParams(max_tokens=1))
    monkeypatch.setattr(native.NativeProgram, "run", spied)
    llm.generate(prompts, replace(params, ignore_eos=True))
    # Two key/value heads; two splits of 128 tokens that all share and one of each sequence's own.
    assert counts
    assert all(count == [2 * (2 + 6), 2 * (3 * 6)] for count in counts)


def test_benchmark_shares_what_it_says():
    shared, copied = (make_step(6, 640, num_shared=num) for num in (512, 0))
    assert num_splits(shared, 16) == 2 * (4 + 6)
    assert num_splits(copied, 16) == 2 * 5 * 6
    assert shared.num_pages == 32 + 6 * 8
