"""Every backend against the reference, and the reference against plain attention."""

import itertools
from dataclasses import replace

import pytest
import torch

from alpage import native
from alpage.errors import InvalidValue, Unsupported
from alpage.ops import AttentionSpec, KvPool, PagedKV, attention, backends, select
from alpage.ops.kv import PagedStep, scale_bytes
from alpage.ops.reference import Reference, rounded, widened

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS = [(4, 4), (6, 2), (5, 1)]
# Query heads, key/value heads and head dim as in GPT-2, Mixtral and PaLM.
FAMILIES = {"gpt2": (12, 12, 64), "mixtral": (32, 8, 128), "palm": (16, 1, 256)}
# New tokens and context of each sequence: decode, whole prompts, chunks, and all of it mixed.
STEPS = {
    "decode": [(1, 1), (1, 16), (1, 17), (1, 100)],
    "prompts": [(5, 5), (33, 33)],
    "chunks": [(7, 40), (16, 17)],
    "mixed": [(1, 50), (20, 20), (3, 30), (1, 2)],
}


def make_step(sizes, page_size, device):
    num_pages = [-(-context // page_size) for _, context in sizes]
    pages = iter(torch.randperm(sum(num_pages) + 3).tolist())
    table_BP = torch.zeros(len(sizes), max(num_pages), dtype=torch.int32)
    slots = []
    for b, (num_queries, context) in enumerate(sizes):
        for p in range(num_pages[b]):
            table_BP[b, p] = next(pages)
        for position in range(context - num_queries, context):
            page = table_BP[b, position // page_size].item()
            slots.append(page * page_size + position % page_size)
    step = PagedStep(
        num_queries=[n for n, _ in sizes],
        contexts=[context for _, context in sizes],
        query_start_B1=torch.tensor(
            [0, *itertools.accumulate(n for n, _ in sizes)], dtype=torch.int32
        ),
        context_B=torch.tensor([context for _, context in sizes], dtype=torch.int32),
        table_BP=table_BP,
        slot_T=torch.tensor(slots),
    )
    return step, sum(num_pages) + 3


def prompts(step, page_size):
    """The same sequences, with all their tokens in one step."""
    pages = [step.table_BP[b, torch.arange(c) // page_size] for b, c in enumerate(step.contexts)]
    places = [torch.arange(c) % page_size for c in step.contexts]
    return replace(
        step,
        num_queries=step.contexts,
        query_start_B1=torch.tensor([0, *itertools.accumulate(step.contexts)], dtype=torch.int32),
        slot_T=torch.cat(pages).long() * page_size + torch.cat(places),
    )


@pytest.mark.parametrize("backend", backends()[:-1], ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("window", [None, 1, 10])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS)
def test_backends_equal_the_reference(backend, dtype, is_int8, window, heads, sizes):
    check_against_reference(backend, dtype, window, (*heads, 32), sizes, is_int8=is_int8)


@pytest.mark.parametrize("backend", backends()[:-1], ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("heads", FAMILIES.values(), ids=FAMILIES)
def test_backends_equal_the_reference_at_the_heads_of_families(backend, dtype, is_int8, heads):
    check_against_reference(backend, dtype, None, heads, STEPS["mixed"], is_int8=is_int8)


def check_against_reference(backend, dtype, window, heads, sizes, *, is_int8):
    kv_dtype = torch.int8 if is_int8 else dtype
    num_heads, num_kv_heads, head_dim = heads
    page_size = 16
    spec = AttentionSpec(
        device="cpu",
        dtype=dtype,
        kv_dtype=kv_dtype,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
    )
    # A machine without a compiler lacks one backend; this is for all that are there.
    if (reason := backend.supports(spec)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    step, num_pages = make_step(sizes, page_size, "cpu")
    before = prompts(step, page_size)
    sizes = (1, 2, num_pages, num_kv_heads, page_size, head_dim + scale_bytes(kv_dtype))
    pools = [KvPool(torch.zeros(sizes, dtype=kv_dtype)) for _ in range(2)]
    for some in (before, step):
        T = len(some.slot_T)
        q_THK, k_TGK, v_TGK = (
            torch.randn(T, h, head_dim).to(dtype) for h in (num_heads, *[num_kv_heads] * 2)
        )
        outs = [
            attention(q_THK, k_TGK, v_TGK, PagedKV(pool, some, way)[0], window=window)
            for pool, way in zip(pools, (backend, Reference()), strict=True)
        ]
    # The order within a head's tile is the backend's own.
    tiles = [pool.kv_L2PGSK.flatten(-2).sort().values for pool in pools]
    assert torch.equal(*tiles)
    assert (outs[0].float() - outs[1].float()).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("heads", HEADS)
def test_reference_in_chunks_equals_attention_without_pages(heads, window):
    torch.manual_seed(0)
    num_heads, num_kv_heads = heads
    L, K, page_size = 45, 16, 8
    q, k, v = (torch.randn(1, L, h, K) for h in (num_heads, num_kv_heads, num_kv_heads))
    expected_BLHK = attention(q, k, v, None, window=window)
    pool = KvPool.zeros((1, 2, 6, num_kv_heads, page_size, K), torch.float32, torch.device("cpu"))
    outs = []
    for start, end in ((0, 20), (20, 21), (21, 45)):
        step = PagedStep(
            num_queries=[end - start],
            contexts=[end],
            query_start_B1=torch.tensor([0, end - start], dtype=torch.int32),
            context_B=torch.tensor([end], dtype=torch.int32),
            table_BP=torch.arange(6, dtype=torch.int32)[None],
            slot_T=torch.arange(start, end),
        )
        part = slice(start, end)
        kv = PagedKV(pool, step, Reference())[0]
        outs.append(attention(q[0, part], k[0, part], v[0, part], kv, window=window))
    assert torch.allclose(torch.cat(outs), expected_BLHK[0], atol=1e-6)


def test_selection_gives_reasons():
    spec = AttentionSpec(
        device="cuda",
        dtype=torch.float16,
        kv_dtype=torch.float16,
        num_heads=1,
        num_kv_heads=1,
        head_dim=7,
        page_size=16,
    )
    assert select(spec, backends()).name == "sdpa"
    with pytest.raises(Unsupported, match="native"):
        select(spec, backends(), "native")
    with pytest.raises(InvalidValue, match="reference"):
        select(spec, backends(), "fastest")
    in_8_bits = replace(spec, kv_dtype=torch.int8)
    with pytest.raises(Unsupported, match=r"not torch\.int8"):
        select(in_8_bits, backends(), "sdpa")
    assert select(in_8_bits, backends()).name == "reference"


def test_tiles_begin_with_a_cache_line():
    pool = KvPool.zeros((3, 2, 5, 2, 16, 64), torch.bfloat16, torch.device("cpu"))
    assert pool.kv_L2PGSK.shape == (3, 2, 5, 2, 16, 64)
    assert not pool.kv_L2PGSK.any()
    assert [layer.data_ptr() % 64 for layer in pool.layers] == [0, 0, 0]


def test_pages_keep_what_they_hold_when_their_memory_is_asked_for():
    pool = KvPool.zeros((3, 2, 700, 2, 16, 64), torch.bfloat16, torch.device("cpu"))
    pool.kv_L2PGSK[:, :, 5] = 1.0
    for slots in ([3], [], [690 * 16, 80], [7]):
        pool.populate(torch.tensor(slots, dtype=torch.int64))
    assert (pool.kv_L2PGSK[:, :, 5] == 1.0).all()
    assert pool.kv_L2PGSK.sum() == 3 * 2 * 2 * 16 * 64


class Asked:
    """Kernels that note which pages' memory they are asked for."""

    def __init__(self):
        self.pages = []

    def populate(self, kv_L2PGSK, first, end):
        self.pages.append((first, end))


def test_small_steps_ask_for_the_memory_of_the_next_prompt(monkeypatch):
    asked = Asked()
    monkeypatch.setattr(native, "load", lambda: asked)
    pool = KvPool.zeros((1, 2, 80, 1, 16, 8), torch.bfloat16, torch.device("cpu"))
    for slot in (*range(40), *range(40)):
        pool.populate(torch.tensor([slot]))
    # One at first, one more a step, and 1,024 tokens ahead of the third page at most.
    assert asked.pages == [(page, page + 1) for page in range(67)]
    pool.populate(torch.arange(32, 64))
    assert len(asked.pages) == 67
    pool.populate(torch.arange(0, 70 * 16))
    assert asked.pages[-1] == (67, 70)
    for _ in range(20):
        pool.populate(torch.tensor([70 * 16]))
    assert asked.pages[-1] == (79, 80)


def test_pages_are_copied_after_all_are_read():
    pool = KvPool(torch.arange(4.0)[None, None, :, None, None, None].repeat(1, 2, 1, 1, 8, 1))
    pool.copy_pages([0, 1, 2], [1, 2, 3], to=pool)
    assert pool.kv_L2PGSK[0, 1, :, 0, 3, 0].tolist() == [0, 0, 1, 2]
    pool.copy_pages([3, 2], [0, 1], to=pool)
    assert pool.kv_L2PGSK[0, 1, :, 0, 3, 0].tolist() == [2, 1, 1, 2]


def test_8_bits_are_within_half_a_step_of_the_scale():
    torch.manual_seed(0)
    x_TGK = torch.randn(50, 3, 24) * torch.logspace(-6, 6, 50)[:, None, None]
    step_TG1 = x_TGK.abs().amax(-1, keepdim=True) / 127
    kept_TGK = rounded(x_TGK)
    assert kept_TGK.shape == (50, 3, 24 + scale_bytes(torch.int8))
    assert kept_TGK[..., :24].abs().amax(-1).eq(127).all()
    assert ((widened(kept_TGK) - x_TGK).abs() <= 0.5001 * step_TG1).all()


def test_8_bits_of_nothing_are_nothing_and_what_is_no_number_stays_none():
    x_TGK = torch.zeros(4, 1, 16)
    x_TGK[1, 0, 3], x_TGK[2, 0, 3], x_TGK[3, 0, 3] = 1e-42, torch.inf, torch.nan
    back_TGK = widened(rounded(x_TGK))
    assert back_TGK[:2].eq(0).all()
    assert back_TGK[2:].isnan().all()
