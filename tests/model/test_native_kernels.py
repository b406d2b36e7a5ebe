"""The native kernels against plain PyTorch, on pools whose unused places hold NaN."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alpage import native
from alpage.native import kernels as native_kernels
from alpage.ops.reference import rounded, widened
from alpage.workload import KV_SCALE_BYTES

# Sums of up to 700 products of float32 in another order than PyTorch's.
FLOAT32_TOLERANCE = 1e-5
# The kernels compute in float32; what they write has 8 significant bits: half of 2**-7 may be off.
BFLOAT16_TOLERANCE = 2.0**-8
# Weights of bfloat16: half of 2**-8 of each, times values of up to 4.
PAIRS_TOLERANCE = 2.0**-7

DTYPES = [torch.float32, torch.bfloat16]


class Kind(NamedTuple):
    """The dtype of queries, and whether pages are of 8 bits."""

    dtype: torch.dtype
    is_int8: bool


KINDS = [Kind(dtype, is_int8) for dtype in DTYPES for is_int8 in (False, True)]
HEADS = [(1, 1), (4, 1), (9, 3), (8, 8)]
HEAD_DIMS = [16, 24, 64, 80, 128, 256]
PAGE_SIZES = [8, 16, 32]
WINDOWS = [None, 1, 7, 100]
# (new tokens, tokens after the step): prompts whole and in chunks, and decodes, some past the first
# split at 512.
SMALL = [(5, 5), (1, 520), (20, 90), (0, 3), (1, 1)]
MIXED = [(5, 5), (1, 600), (20, 90), (1, 1), (0, 3), (40, 530), (1, 64)]
# So many that each is gone through with all heads side by side, in one piece or in several.
MANY = [(1, 90 * b + 1) for b in range(12)] + [(3, 700), (1, 128), (0, 1)]

MODULE = native.load()
ISAS = MODULE.module.isas() if MODULE else []
needs_kernels = pytest.mark.skipif(MODULE is None, reason=str(native.unavailable_reason()))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatStep:
    query_start_B1: Tensor
    context_B: Tensor
    table_BP: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One layer's step: keys and values of each sequence as they are, and the same in a pool.

    The pool has tokens in rows; one of 8 bits has each token's scale behind its numbers.
    """

    q_THK: Tensor
    k_CGK: list[Tensor]
    v_CGK: list[Tensor]
    kv_2PGSK: Tensor
    step: FlatStep
    window: int | None

    @property
    def scale(self) -> float:
        return self.q_THK.shape[2] ** -0.5


def make_case(
    sequences: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (9, 3),
    head_dim: int = 64,
    page_size: int = 16,
    window: int | None = None,
    kind: Kind = KINDS[0],
    seed: int = 0,
) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(kind.dtype)

    num_heads, num_kv_heads = heads
    width = max(-(-context // page_size) for _, context in sequences) + 1
    num_pages = width * len(sequences) + 1  # the first one belongs to nobody
    sizes = (2, num_pages, num_kv_heads, page_size, head_dim)
    kv_2PGSK = torch.full(sizes, torch.nan, dtype=kind.dtype)
    table_BP = torch.zeros(len(sequences), width, dtype=torch.int32)
    pages = iter((torch.randperm(num_pages - 1, generator=random) + 1).tolist())
    keys, values = [], []
    for b, (num_new, context) in enumerate(sequences):
        keys.append(normal(context, num_kv_heads, head_dim))
        values.append(normal(context, num_kv_heads, head_dim))
        # What no query of the step sees any more is gone, and so are pages that hold nothing else.
        oldest = 0 if window is None else max(0, context - num_new - window + 1)
        for page in range(oldest // page_size, -(-context // page_size)):
            table_BP[b, page] = next(pages)
        live = torch.arange(oldest, context)
        place = table_BP[b, live // page_size].long(), slice(None), live % page_size
        kv_2PGSK[0][place] = keys[b][live]
        kv_2PGSK[1][place] = values[b][live]
    step = FlatStep(
        query_start_B1=torch.tensor([0, *(new for new, _ in sequences)]).cumsum(0).int(),
        context_B=torch.tensor([context for _, context in sequences]).int(),
        table_BP=table_BP,
    )
    q_THK = normal(sum(new for new, _ in sequences), num_heads, head_dim)
    if kind.is_int8:
        kv_2PGSK = rounded(kv_2PGSK)
        keys, values = ([widened(rounded(x)) for x in some] for some in (keys, values))
    return Case(q_THK=q_THK, k_CGK=keys, v_CGK=values, kv_2PGSK=kv_2PGSK, step=step, window=window)


def expected(case: Case) -> Tensor:
    """Attention in float32, sequence by sequence, with all scores at once."""
    out = []
    starts = case.step.query_start_B1.tolist()
    for b, (k_CGK, v_CGK) in enumerate(zip(case.k_CGK, case.v_CGK, strict=True)):
        q_NHK = case.q_THK[starts[b] : starts[b + 1]].float()
        group = q_NHK.shape[1] // k_CGK.shape[1]
        k_CHK, v_CHK = (x.float().repeat_interleave(group, dim=1) for x in (k_CGK, v_CGK))
        key_1C = torch.arange(k_CGK.shape[0])[None]
        query_N1 = (torch.arange(q_NHK.shape[0]) + k_CGK.shape[0] - q_NHK.shape[0])[:, None]
        is_seen_NC = key_1C <= query_N1
        if case.window is not None:
            is_seen_NC &= key_1C > query_N1 - case.window
        score_HNC = torch.einsum("nhk,chk->hnc", q_NHK, k_CHK) * case.scale
        weight_HNC = score_HNC.masked_fill(~is_seen_NC, -torch.inf).softmax(-1)
        out.append(torch.einsum("hnc,chk->nhk", weight_HNC, v_CHK))
    return torch.cat(out)


def attend(case: Case, isa: str | None = None) -> Tensor:
    kernels = native.load(isa)
    assert kernels is not None
    kv_2PGSK = in_form(case.kv_2PGSK, case.q_THK, isa)
    return kernels.paged_attention(
        case.q_THK, kv_2PGSK, case.step, scale=case.scale, window=case.window
    )


def has_pairs(kv_2PGSK: Tensor, x_THK: Tensor, isa: str | None) -> bool:
    """Whether the kernels want this pool's tiles in pairs, for heads like these."""
    kernels = native.load(isa)
    assert kernels is not None
    page_size, head_dim = kv_2PGSK.shape[-2], x_THK.shape[-1]
    return kernels.has_pairs(dtype=x_THK.dtype, page_size=page_size, head_dim=head_dim)


def in_form(kv_2PGSK: Tensor, x_THK: Tensor, isa: str | None) -> Tensor:
    """Return a pool of rows as the kernels want it: scales lie behind a tile's numbers."""
    if kv_2PGSK.dtype == torch.int8:
        number, scale = kv_2PGSK.split([x_THK.shape[-1], KV_SCALE_BYTES], dim=-1)
        in_order = in_form_of_dtype(number, x_THK, isa)
        tiles = torch.cat([in_order.flatten(-2), scale.flatten(-2)], dim=-1)
        return tiles.view(kv_2PGSK.shape)
    return in_form_of_dtype(kv_2PGSK, x_THK, isa)


def in_form_of_dtype(kv_2PGSK: Tensor, x_THK: Tensor, isa: str | None) -> Tensor:
    """Return numbers in the order that the kernels want."""
    return to_pairs(kv_2PGSK) if has_pairs(kv_2PGSK, x_THK, isa) else kv_2PGSK


def to_pairs(kv_2PGSK: Tensor) -> Tensor:
    """Keys: 16 tokens side by side, two features each. Values: a feature of two tokens each."""
    k_PGSK, v_PGSK = kv_2PGSK
    k = k_PGSK.unflatten(-1, (-1, 2)).unflatten(2, (-1, 16)).transpose(3, 4)
    v = v_PGSK.unflatten(2, (-1, 2)).transpose(3, 4)
    return torch.stack([k.reshape(k_PGSK.shape), v.reshape(v_PGSK.shape)])


def assert_close(actual: Tensor, wanted: Tensor, what: str, *, is_pairs: bool = False) -> None:
    relative = BFLOAT16_TOLERANCE if actual.dtype == torch.bfloat16 else FLOAT32_TOLERANCE
    absolute = PAIRS_TOLERANCE if is_pairs else FLOAT32_TOLERANCE
    torch.testing.assert_close(
        actual.float(), wanted, rtol=relative, atol=absolute, msg=lambda m: f"{what}: {m}"
    )


def check(case: Case, wanted: Tensor, what: str, isa: str | None = None) -> None:
    """Attend, and compare."""
    is_pairs = has_pairs(case.kv_2PGSK, case.q_THK, isa)
    assert_close(attend(case, isa), wanted, what, is_pairs=is_pairs)


def part(case: Case, b: int) -> Case:
    """Sequence b alone."""
    start, end = case.step.query_start_B1[b : b + 2].tolist()
    step = FlatStep(
        query_start_B1=torch.tensor([0, end - start]).int(),
        context_B=case.step.context_B[b : b + 1],
        table_BP=case.step.table_BP[b : b + 1],
    )
    return replace(case, q_THK=case.q_THK[start:end], step=step)


@pytest.fixture
def threads():
    """Set the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equals_plain_pytorch(heads, head_dim, kind, threads):
    threads(1)  # many small steps: two threads on a busy machine wait for each other
    # Pages of 8 bits are widened first: from there on it is the same code.
    for page_size in PAGE_SIZES[:2] if kind.is_int8 else PAGE_SIZES:
        for window in WINDOWS[::2] if kind.is_int8 else WINDOWS:
            case = make_case(
                MIXED,
                heads=heads,
                head_dim=head_dim,
                page_size=page_size,
                window=window,
                kind=kind,
            )
            wanted = expected(case)
            for isa in ISAS:
                check(case, wanted, f"{isa}, {page_size=}, {window=}", isa)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_long_prompt_equals_plain_pytorch(isa, kind):
    case = make_case([(700, 1300), (1, 2000)], kind=kind)
    check(case, expected(case), isa, isa)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.integers(0, 150), st.integers(0, 1100)).map(lambda x: (x[0], sum(x) or 1)),
        min_size=1,
        max_size=5,
    ),
    window=st.none() | st.integers(1, 1200),
    page_size=st.sampled_from(PAGE_SIZES),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_any_step_equals_plain_pytorch(sequences, window, page_size, kind, seed):
    case = make_case(sequences, window=window, page_size=page_size, kind=kind, seed=seed)
    if case.q_THK.shape[0] > 0:
        check(case, expected(case), "best instruction set")


@needs_kernels
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sequences", [MIXED, MANY], ids=["mixed", "many"])
def test_row_is_bitwise_the_same_in_any_company(sequences, isa, kind, window, threads):
    case = make_case(sequences, window=window, kind=kind)
    together = attend(case, isa)
    check(case, expected(case), isa, isa)
    for num_threads in (1, 2, 3):
        threads(num_threads)
        assert torch.equal(attend(case, isa), together)
        alone = [attend(part(case, b), isa) for b in range(len(sequences))]
        assert torch.equal(torch.cat(alone), together)


def share_prefix(case: Case, num_shared: int, page_size: int) -> None:
    """Let every sequence begin as the longest one does, on the same pages."""
    first = max(range(len(case.k_CGK)), key=lambda b: len(case.k_CGK[b]))
    for b, (k_CGK, v_CGK) in enumerate(zip(case.k_CGK, case.v_CGK, strict=True)):
        num = min(num_shared, len(k_CGK) - 1) // page_size * page_size
        k_CGK[:num] = case.k_CGK[first][:num]
        v_CGK[:num] = case.v_CGK[first][:num]
        case.step.table_BP[b, : num // page_size] = case.step.table_BP[first, : num // page_size]


@needs_kernels
@pytest.mark.parametrize("page_size", [8, 16, 48])
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_shared_pages_give_each_row_its_own_bits(isa, kind, window, page_size, threads):
    # Decodes that share three splits, two or none, beside prompts that share some; 11 and more
    # sequences of 3 rows need two tiles.
    sequences = [(1, 400 + b) for b in range(14)] + [(1, 300), (1, 20), (4, 500), (200, 450)]
    case = make_case(sequences, window=None, kind=kind, page_size=page_size)
    share_prefix(case, 390, page_size)
    case = replace(case, window=window)
    together = attend(case, isa)
    check(case, expected(case), isa, isa)
    for num_threads in (1, 2, 3):
        threads(num_threads)
        assert torch.equal(attend(case, isa), together)
    alone = [attend(part(case, b), isa) for b in range(len(sequences))]
    assert torch.equal(torch.cat(alone), together)


@needs_kernels
@pytest.mark.parametrize(
    ("window", "num_alone", "num_shared"),
    # Fourteen sequences of four splits, two of which they share: 11 and 3 of them at a time. Of a
    # window that begins at a different place for each, all of the second one is seen.
    [(None, 14 * 4, 14 * 2 + 2 * 2), (330, 14 * 4, 14 * 3 + 2)],
)
def test_shared_pages_are_read_once(window, num_alone, num_shared):
    case = make_case([(1, 400 + b) for b in range(14)])
    counted = dict(heads=(9, 3), num_pages=len(case.kv_2PGSK[0]), page_size=16, window=window)
    assert MODULE is not None
    assert MODULE.num_splits(case.step, **counted) == 3 * num_alone
    share_prefix(case, 256, 16)
    assert MODULE.num_splits(case.step, **counted) == 3 * num_shared


@needs_kernels
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_row_is_bitwise_the_same_in_any_chunk(isa, kind, window):
    case = make_case([(700, 700)], window=window, kind=kind)
    whole = attend(case, isa)
    for chunk in (1, 7, 64, 333):
        for start in range(0, 700, chunk * 5):
            end = min(start + chunk, 700)
            step = FlatStep(
                query_start_B1=torch.tensor([0, end - start]).int(),
                context_B=torch.tensor([end]).int(),
                table_BP=case.step.table_BP,
            )
            q_THK = case.q_THK[start:end]
            piece = Case(
                q_THK=q_THK, k_CGK=[], v_CGK=[], kv_2PGSK=case.kv_2PGSK, step=step, window=window
            )
            assert torch.equal(attend(piece, isa), whole[start:end]), f"{chunk=}, {start=}"


@needs_kernels
def test_reads_queries_and_writes_output_with_strides():
    case = make_case(MIXED)
    num_tokens, num_heads, head_dim = case.q_THK.shape
    qkv = torch.cat([case.q_THK.flatten(1), torch.full((num_tokens, 40), torch.nan)], dim=1)
    q_THK = qkv[:, : num_heads * head_dim].view(num_tokens, num_heads, head_dim)
    out_THK = torch.zeros(num_tokens, num_heads, head_dim + 8)[..., :head_dim]
    assert MODULE is not None
    result = MODULE.paged_attention(
        q_THK, case.kv_2PGSK, case.step, scale=case.scale, out_THK=out_THK
    )
    assert result is out_THK
    assert torch.equal(out_THK, attend(case))


@needs_kernels
def test_nan_query_spoils_its_own_row_only():
    case = make_case([(4, 30)])
    clean = attend(case)
    case.q_THK[2, 5, 3] = torch.nan
    spoilt = attend(case)
    assert spoilt[2, 5].isnan().all()
    spoilt[2, 5] = clean[2, 5]
    assert torch.equal(spoilt, clean)


@needs_kernels
@pytest.mark.parametrize("field", ["query_start_B1", "context_B", "table_BP"])
def test_step_out_of_range_is_refused(field):
    case = make_case([(4, 30), (2, 9)])
    getattr(case.step, field).flatten()[1] = {
        "query_start_B1": 7,
        "context_B": 10_000,
        "table_BP": 99,
    }[field]
    with pytest.raises(IndexError, match=r"is not in \[0, "):
        attend(case)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "page_size"), [(24, 8), (48, 32)])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 500])
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
def test_store_is_exact(is_int8, num_tokens, head_dim, page_size, dtype):
    assert MODULE is not None
    num_kv_heads = 3
    qkv = torch.randn(num_tokens, 5, num_kv_heads, head_dim).to(dtype)
    # What is halfway between two numbers, nothing, and too much and too little to scale.
    for token, some in enumerate([(127, 0.5, -1.5, 2.5), (0,), (torch.inf, 1), (1e-38,), (1e-42,)]):
        row = torch.zeros(head_dim).to(dtype)
        row[: len(some)] = torch.tensor(some)
        qkv[token * 97 : token * 97 + 1, :, 1] = row
    k_TGK, v_TGK = qkv[:, 2], qkv[:, 4]
    slot_T = torch.randperm(100 * page_size)[:num_tokens]
    kv_2PGSK = torch.randn(2, 100, num_kv_heads, page_size, head_dim).to(dtype)
    kv_2PGSK = rounded(kv_2PGSK) if is_int8 else kv_2PGSK
    wanted = kv_2PGSK.clone()
    for layer, x_TGK in zip(wanted, (k_TGK, v_TGK), strict=True):
        layer[slot_T // page_size, :, slot_T % page_size] = rounded(x_TGK) if is_int8 else x_TGK
    stored = in_form(kv_2PGSK, k_TGK, None).clone()
    MODULE.store_kv(k_TGK, v_TGK, stored, slot_T)
    assert torch.equal(stored, in_form(wanted, k_TGK, None))


@needs_kernels
@pytest.mark.parametrize("slot", [-1, 32])
def test_store_out_of_range_writes_nothing(slot):
    assert MODULE is not None
    kv_2PGSK = torch.zeros(2, 4, 1, 8, 16)
    new_TGK = torch.ones(2, 1, 16)
    with pytest.raises(IndexError, match=f"slot {slot} is not in"):
        MODULE.store_kv(new_TGK, new_TGK, kv_2PGSK, torch.tensor([3, slot]))
    assert not kv_2PGSK.any()


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_holds_one_openmp_runtime():
    program = """
import re, torch
from alpage import native
class Step:
    query_start_B1 = torch.arange(9).int()
    context_B = torch.full((8,), 16).int()
    table_BP = torch.arange(8)[:, None].int()
torch.set_num_threads(2)
kv = torch.zeros(2, 8, 1, 16, 64)
native.load().paged_attention(torch.zeros(8, 1, 64), kv, Step, scale=1.0)
torch.randn(300, 300) @ torch.randn(300, 300)
files = {line.split()[-1] for line in open("/proc/self/maps")}
print(sum(bool(re.search("gomp|iomp|libomp", file)) for file in files), end=" ")
print(any("_kernels" in file for file in files))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1", "True"]


def test_reason_is_told_where_nothing_was_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "alpage.native._kernels", None)
    native_kernels.import_kernels.cache_clear()
    try:
        assert native.load() is None
        assert "were not built" in str(native.unavailable_reason())
    finally:
        native_kernels.import_kernels.cache_clear()


@needs_kernels
def test_reason_is_told_where_torch_has_no_openmp(monkeypatch):
    monkeypatch.setattr(native_kernels, "_openmp_entry", lambda: None)
    native_kernels.import_kernels.cache_clear()
    try:
        assert "no OpenMP runtime" in str(native.unavailable_reason())
    finally:
        native_kernels.import_kernels.cache_clear()


@needs_kernels
def test_unsupported_pools_are_named():
    assert MODULE is not None
    assert MODULE.unsupported_reason(dtype=torch.bfloat16, head_dim=64) is None
    assert "float16" in str(MODULE.unsupported_reason(dtype=torch.float16, head_dim=64))
    assert "multiples of 8" in str(MODULE.unsupported_reason(dtype=torch.float32, head_dim=60))
