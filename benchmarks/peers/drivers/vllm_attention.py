"""vLLM's attention on CPUs by itself: the operator that its backend calls for a step of decodes.

It reads a line of JSON for each measurement, {"batch", "context", "num_pools"}, attends once to
every pool, and answers with the seconds that a call took.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

_NUM_HEADS, _NUM_KV_HEADS, _HEAD_DIM = 9, 3, 64
_BLOCK_SIZE = 128  # vLLM's own choice on CPUs


def attending(batch: int, context: int, num_pools: int) -> Callable[[], None]:
    """Return what attends to every pool once."""
    dtype = torch.bfloat16
    blocks_each = -(-context // _BLOCK_SIZE)
    num_blocks = batch * blocks_each
    table = torch.randperm(num_blocks).int().view(batch, blocks_each)
    # Keys and values are the halves of one tensor, as the backend cuts it.
    one = torch.randn(num_blocks, _NUM_KV_HEADS, 2 * _BLOCK_SIZE, _HEAD_DIM).to(dtype)
    pools = [one.clone().chunk(2, dim=2) for _ in range(num_pools)]
    query = torch.randn(batch, _NUM_HEADS, _HEAD_DIM).to(dtype)
    output = torch.empty_like(query)
    starts = torch.arange(batch + 1).int()
    lengths = torch.full((batch,), context).int()
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=batch,
        num_heads=_NUM_HEADS,
        num_kv_heads=_NUM_KV_HEADS,
        head_dim=_HEAD_DIM,
        seq_lens=lengths,
        dtype=dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=_get_attn_isa(dtype, _BLOCK_SIZE, _HEAD_DIM),
        enable_kv_split=True,
    )

    def run() -> None:
        for keys, values in pools:
            ops.cpu_attention_with_kv_cache(
                query=query,
                key_cache=keys,
                value_cache=values,
                output=output,
                query_start_loc=starts,
                seq_lens=lengths,
                scale=_HEAD_DIM**-0.5,
                causal=True,
                alibi_slopes=None,
                sliding_window=-1,
                block_table=table,
                softcap=0.0,
                scheduler_metadata=schedule,
                s_aux=None,
            )

    return run


def main() -> None:
    """Answer until there is no line any more."""
    current_platform.import_kernels()
    shape, run = None, None
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted != shape or run is None:
            shape, run = wanted, None  # the old pools go first
            run = attending(**wanted)
            run()
        start_s = time.perf_counter()
        run()
        print(json.dumps((time.perf_counter() - start_s) / wanted["num_pools"]), flush=True)


if __name__ == "__main__":
    main()
