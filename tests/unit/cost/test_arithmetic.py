"""A step's operations and bytes: the two regimes that serving moves between."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.cost import roofline_s, step_bytes, step_flops
from alpage.workload import ModelShape

SMOLLM2 = ModelShape(
    num_layers=30,
    d_model=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    num_ffn_matrices=3,
    vocab_size=49_152,
    is_tied=True,
)
UNTIED = dataclasses.replace(SMOLLM2, is_tied=False)
BF16 = {"weight_element_bytes": 2, "kv_element_bytes": 2}


def test_a_token_takes_two_operations_a_weight():
    """All weights but the norms are multiplied with once; with a short context that is all."""
    flops = step_flops(SMOLLM2, num_tokens=1, num_attended_pairs=0, num_logit_rows=1)
    norms = (2 * 30 + 1) * 576
    assert flops == 2 * (SMOLLM2.num_parameters - norms)


def test_attention_is_counted_by_pairs():
    """Pairs add up: a prompt in one piece or token by token takes the same operations."""
    whole = step_flops(SMOLLM2, num_tokens=8, num_attended_pairs=sum(range(1, 9)), num_logit_rows=0)
    pieces = sum(
        step_flops(SMOLLM2, num_tokens=1, num_attended_pairs=context, num_logit_rows=0)
        for context in range(1, 9)
    )
    assert whole == pieces
    # Two products, over 64 features, in 9 heads of 30 layers.
    pair = step_flops(SMOLLM2, num_tokens=0, num_attended_pairs=1, num_logit_rows=0)
    assert pair == 2 * 2 * 64 * 9 * 30


def test_weights_are_read_once_and_kv_once_a_token():
    step = step_bytes(SMOLLM2, num_tokens=1, num_kv_tokens_read=1000, **BF16)
    assert step == 2 * SMOLLM2.num_parameters + 1001 * 23_040


def test_of_an_input_embedding_only_rows_are_read():
    tied = step_bytes(SMOLLM2, num_tokens=5, num_kv_tokens_read=0, **BF16)
    untied = step_bytes(UNTIED, num_tokens=5, num_kv_tokens_read=0, **BF16)
    assert untied - tied == 2 * 5 * 576


# A machine that does 12 operations for each byte it reads.
FLOPS_PER_S, BYTES_PER_S = 400e9, 33e9


@pytest.mark.parametrize(("batch", "is_bound_by_memory"), [(1, True), (128, False)])
def test_decoding_alone_reads_and_together_computes(batch, is_bound_by_memory):
    flops = step_flops(SMOLLM2, num_tokens=batch, num_attended_pairs=batch, num_logit_rows=batch)
    num_bytes = step_bytes(SMOLLM2, num_tokens=batch, num_kv_tokens_read=batch, **BF16)
    floor_s = roofline_s(flops, num_bytes, flops_per_s=FLOPS_PER_S, bytes_per_s=BYTES_PER_S)
    assert (floor_s == num_bytes / BYTES_PER_S) == is_bound_by_memory
    assert (floor_s == flops / FLOPS_PER_S) != is_bound_by_memory


@given(st.integers(1, 512), st.integers(1, 8192))
def test_more_work_never_takes_less(num_tokens, context):
    def floor_s(num_tokens, context):
        flops = step_flops(
            SMOLLM2,
            num_tokens=num_tokens,
            num_attended_pairs=num_tokens * context,
            num_logit_rows=num_tokens,
        )
        num_bytes = step_bytes(SMOLLM2, num_tokens=num_tokens, num_kv_tokens_read=context, **BF16)
        return roofline_s(flops, num_bytes, flops_per_s=FLOPS_PER_S, bytes_per_s=BYTES_PER_S)

    assert floor_s(num_tokens, context) < floor_s(num_tokens + 1, context + 1)
