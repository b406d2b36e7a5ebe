"""Attention: how fast the kernel that decodes reads keys and values, beside a plain read of memory.

    python -m benchmarks.attention

Every call reads another pool, as layers do, so that no cache holds what is read. One layer of
SmolLM2: 9 query and 3 key/value heads of 64, pages of 16 tokens anywhere in the pool.

Dims as in `alpage.native.kernels`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from alpage import native
from alpage.runtime.ceilings import read_load
from alpage.units import GB, MiB
from benchmarks.results_file import save, to_markdown

_NUM_HEADS, _NUM_KV_HEADS, _HEAD_DIM, _PAGE_SIZE = 9, 3, 64, 16
_CONTEXTS = (256, 1024, 2048, 8192)
_BATCHES = (1, 8, 64)
_POOL_BYTES = 256 * MiB
_MAX_POOLS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """One new token of every sequence."""

    query_start_B1: Tensor  # noqa: N815
    context_B: Tensor  # noqa: N815
    table_BP: Tensor  # noqa: N815

    @property
    def num_bytes(self) -> int:
        """Of keys and values that a call reads."""
        tokens = int(self.context_B.sum())
        return 2 * tokens * _NUM_KV_HEADS * _HEAD_DIM * torch.bfloat16.itemsize


def make_step(batch: int, context: int) -> DecodeStep:
    """Return a step of so many sequences."""
    pages_each = -(-context // _PAGE_SIZE)
    return DecodeStep(
        query_start_B1=torch.arange(batch + 1).int(),
        context_B=torch.full((batch,), context).int(),
        table_BP=torch.randperm(batch * pages_each).int().view(batch, -1),
    )


def decoding(kernels: native.Kernels, step: DecodeStep) -> Callable[[], int]:
    """Return what attends to pools in turn and tells the bytes it read."""
    sizes = (2, step.table_BP.numel(), _NUM_KV_HEADS, _PAGE_SIZE, _HEAD_DIM)
    one = torch.randn(sizes).bfloat16()
    num_pools = min(_MAX_POOLS, max(2, -(-_POOL_BYTES // one.nbytes)))
    kvs = [one.clone() for _ in range(num_pools)]
    q_THK = torch.randn(len(step.context_B), _NUM_HEADS, _HEAD_DIM).bfloat16()

    def run() -> int:
        for kv_2PGSK in kvs:
            kernels.paged_attention(q_THK, kv_2PGSK, step, scale=_HEAD_DIM**-0.5)
        return len(kvs) * step.num_bytes

    return run


def bytes_per_s(run: Callable[[], int]) -> float:
    """Return what a run reads a second."""
    start_s = time.perf_counter()
    num_bytes = run()
    return num_bytes / (time.perf_counter() - start_s)


def main() -> None:
    """Measure every context and batch beside a plain read, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    num_rounds = parser.parse_args().rounds
    kernels = native.load()
    if kernels is None:
        raise SystemExit(native.unavailable_reason())
    plain = read_load(torch.device("cpu"))

    def read() -> int:
        plain.run()
        return plain.amount

    rows, figures = [], []
    for batch in _BATCHES:
        for context in _CONTEXTS:
            run = decoding(kernels, make_step(batch, context))
            run()
            pairs = [(bytes_per_s(run), bytes_per_s(read)) for _ in range(num_rounds)]
            attention, memory = (median(values) for values in zip(*pairs, strict=True))
            share = median(one / other for one, other in pairs)
            rows.append(
                {
                    "sequences": str(batch),
                    "context": f"{context:,}",
                    "attention, GB/s": f"{attention / GB:.1f}",
                    "plain read, GB/s": f"{memory / GB:.1f}",
                    "share": share,
                }
            )
            figures.append(
                {
                    "batch": batch,
                    "context": context,
                    "bytes_per_s": attention,
                    "read_bytes_per_s": memory,
                    "share": share,
                }
            )
    table = to_markdown(rows)
    print(table)
    save("attention", {"threads": torch.get_num_threads(), "rows": figures}, table)


if __name__ == "__main__":
    main()
