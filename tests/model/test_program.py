"""Blocks as one native program against the same blocks by one call after the other."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alpage import LLM, SamplingParams, native
from alpage.ops.arena import Lifetime, place
from alpage.ops.attention import PagedKV
from alpage.ops.backends import Native
from alpage.ops.kv import KvPool, PagedStep
from alpage.ops.linear import linear, packed
from alpage.ops.program import compiled
from alpage.ops.rows import rms_norm, silu_mul
from alpage.ops.tracing import Trace, Untraceable
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama

pytestmark = pytest.mark.skipif(
    not native.has_linear(), reason="the kernels for linear layers are not for this machine"
)
PROMPTS = [[5 + i * j % 90 for i in range(n)] for j, n in enumerate((1, 3, 40, 100, 17), start=1)]
PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3)
D_MODEL, HEAD_DIM = 64, 16


def llm_of(path, **settings):
    return LLM(
        path,
        kv_memory="4MiB",
        dtype="bfloat16",
        device="cpu",
        max_num_batched_tokens=48,
        max_num_seqs=8,
        **settings,
    )


def answers(llm):
    return [
        (out.outputs[0].token_ids, out.outputs[0].logprobs) for out in llm.generate(PROMPTS, PARAMS)
    ]


def without_program(llm):
    (view,) = llm.engine.runner.views
    assert view.program is not None
    llm.engine.runner.views = [type(view)(model=view.model)]
    return llm


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"quantization": "int8"}, {"kv_dtype": "int8"}], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "num_hidden_layers": 3},
        {"num_key_value_heads": 1, "head_dim": 24, "intermediate_size": 90},
        {"family": "Mistral", "sliding_window": 12},
    ],
    ids=["plain", "biases", "every head its own", "one head for all", "window"],
)
def test_engine_gives_the_same_bits(tmp_path, sizes, settings):
    make_tiny_llama(tmp_path, **sizes)
    found = answers(llm_of(tmp_path, **settings))
    assert found == answers(without_program(llm_of(tmp_path, **settings)))


@pytest.mark.parametrize("family", ["GPT2", "Mixtral", "PaLM"])
def test_what_cannot_be_traced_runs_all_the_same(tmp_path, family):
    make_tiny(tmp_path, family)
    llm = llm_of(tmp_path)
    assert llm.engine.runner.views[0].program is None
    assert len(answers(llm)) == len(PROMPTS)


def test_number_of_threads_changes_nothing(tmp_path):
    make_tiny_llama(tmp_path)
    usual = torch.get_num_threads()
    try:
        found = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            found.append(answers(llm_of(tmp_path)))
    finally:
        torch.set_num_threads(usual)
    assert found[0] == found[1] == found[2]


# -- what it refuses -------------------------------------------------------------------------------


def pages_of(step_slots, table, context):
    pool = KvPool.zeros((1, 2, 4, 2, 8, HEAD_DIM), torch.bfloat16, torch.device("cpu"))
    step = PagedStep(
        num_queries=[len(step_slots)],
        contexts=[context],
        query_start_B1=torch.tensor([0, len(step_slots)], dtype=torch.int32),
        context_B=torch.tensor([context], dtype=torch.int32),
        table_BP=torch.tensor([table], dtype=torch.int32),
        slot_T=torch.tensor(step_slots),
    )
    return PagedKV(pool, step, Native())


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path, num_hidden_layers=1)
    return llm_of(path).engine.runner.views[0].program


@pytest.mark.parametrize(
    ("slots", "table", "context"),
    [([32], [0], 1), ([-1], [0], 1), ([0], [4], 1), ([0], [-1], 1), ([0], [0], 9), ([0], [0], 0)],
)
def test_step_outside_of_its_pages_writes_nothing(program, slots, table, context):
    kv = pages_of(slots, table, context)
    x_TD, turn_TK = torch.ones(1, D_MODEL, dtype=torch.bfloat16), torch.ones(1, HEAD_DIM)
    with pytest.raises(IndexError):
        program(x_TD, turn_TK, kv, [1])
    assert not kv.pool.kv_L2PGSK.any()


# -- tokens that are kept --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 3], ids="{} layers".format)
def deep_program(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path, num_hidden_layers=request.param)
    return llm_of(path).engine.runner.views[0].program


def three_sequences():
    """Return inputs of 5, 1 and 4 new tokens, behind 3, 7 and 0 others."""
    torch.manual_seed(0)
    pool = KvPool.zeros((3, 2, 4, 2, 8, HEAD_DIM), torch.bfloat16, torch.device("cpu"))
    pool.kv_L2PGSK.normal_()
    step = PagedStep(
        num_queries=[5, 1, 4],
        contexts=[8, 8, 4],
        query_start_B1=torch.tensor([0, 5, 6, 10], dtype=torch.int32),
        context_B=torch.tensor([8, 8, 4], dtype=torch.int32),
        table_BP=torch.tensor([[2], [0], [3]], dtype=torch.int32),
        slot_T=torch.tensor([19, 20, 21, 22, 23, 7, 24, 25, 26, 27]),
    )
    x_TD = torch.randn(10, D_MODEL).bfloat16()
    return x_TD, torch.randn(10, HEAD_DIM), PagedKV(pool, step, Native())


@pytest.mark.parametrize("kept", [(5, 1, 4), (1, 1, 1), (0, 1, 0), (0, 0, 0), (5, 0, 1), (0, 0, 3)])
def test_kept_tokens_have_the_same_bits(deep_program, kept):
    expected_TD = deep_program(*three_sequences(), [5, 1, 4])
    x_TD, turn_TK, kv = three_sequences()
    found_RD = deep_program(x_TD, turn_TK, kv, kept)
    rows = [end - i for end, num in zip((5, 6, 10), kept, strict=True) for i in range(num, 0, -1)]
    assert torch.equal(found_RD, expected_TD[rows])
    assert torch.equal(x_TD, three_sequences()[0])


@pytest.mark.parametrize(
    "kept", [(6, 1, 2), (0, 2, 0), (-1, 1, 4), (4, 2, 4), (6, 1, 4), (5, 1, 5)]
)
def test_more_tokens_than_there_are_cannot_be_kept(deep_program, kept):
    x_TD, turn_TK, kv = three_sequences()
    before = kv.pool.kv_L2PGSK.clone()
    with pytest.raises(IndexError, match="keeps"):
        deep_program(x_TD, turn_TK, kv, kept)
    assert torch.equal(kv.pool.kv_L2PGSK, before)


# -- tracing ---------------------------------------------------------------------------------------


def scaled(x, *_):
    return x * 2


def copied(x, *_):
    return silu_mul(x.unflatten(-1, (2, -1)).unflatten(-1, (2, -1)).flatten(-3, -1)[:, ::2])


def bent(x, *_):
    return rms_norm(
        x.split(32, dim=-1)[0].unflatten(-1, (2, -1)).unbind(-1)[0], torch.ones(2), 1e-5
    )


def foreign(x, *_):
    return x + torch.ones(2, D_MODEL, dtype=torch.bfloat16)


def written(x, *_):
    x[0] = 1
    return x


@pytest.mark.parametrize("blocks", [scaled, copied, bent, foreign, written])
def test_what_cannot_be_noted_is_no_program(blocks):
    assert compiled(blocks, D_MODEL, HEAD_DIM) is None


def test_parts_of_a_row_are_told_apart():
    trace = Trace()
    weight = packed(torch.ones(96, D_MODEL, dtype=torch.bfloat16))
    one, other = linear(trace.stand_in(D_MODEL), weight).unflatten(-1, (3, 2, 16)).split((1, 2), -3)
    assert trace.part(one).offset_bytes == 0
    assert trace.part(other).offset_bytes == 64
    assert trace.part(other.unbind(-3)[1]).offset_bytes == 128
    assert trace.part(other.unbind(-3)[1]).sizes == (2, 16)
    with pytest.raises(Untraceable):
        Trace().part(one)


# -- places in memory ------------------------------------------------------------------------------

LIFETIMES = st.lists(
    st.builds(
        lambda first, length, num_bytes: Lifetime(first, first + length, num_bytes),
        st.integers(0, 12),
        st.integers(0, 6),
        st.integers(1, 40),
    ),
    max_size=12,
)


@given(LIFETIMES, st.sampled_from([1, 8]))
def test_what_lives_at_one_time_lies_apart(lifetimes, multiple):
    starts, size = place(lifetimes, multiple)
    assert all(start % multiple == 0 for start in starts)
    ends = [start + life.num_bytes for start, life in zip(starts, lifetimes, strict=True)]
    assert size == max(ends, default=0)
    for time in range(20):
        living = sorted(
            (start, end)
            for start, end, life in zip(starts, ends, lifetimes, strict=True)
            if life.first <= time <= life.last
        )
        for (_, end), (start, _) in pairwise(living):
            assert end <= start


def test_buffers_that_repeat_take_their_place_again():
    layers = [Lifetime(2 * n + k, 2 * n + k + 1, 64) for n in range(30) for k in range(2)]
    assert place(layers, 64)[1] == 128


def test_process_that_ends_with_a_model_in_memory_says_nothing(tmp_path):
    make_tiny_llama(tmp_path)
    command = [sys.executable, "-m", "alpage", "generate", str(tmp_path), "--prompt", "Hi"]
    options = ["--kv-memory", "4MiB", "--dtype", "bfloat16", "--device", "cpu"]
    done = subprocess.run(
        [*command, *options, "--max-tokens", "2"], capture_output=True, text=True, check=True
    )
    assert "leak" not in done.stderr
