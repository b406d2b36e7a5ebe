"""Attention: how fast the kernel that decodes reads keys and values, beside a plain read of memory.

    python -m benchmarks.attention [--peers DIRECTORY]

Every call reads another pool, as layers do, so that no cache holds what is read. One layer of
SmolLM2: 9 query and 3 key/value heads of 64, pages of 16 tokens anywhere in the pool. With the
directory of the peers (`python -m benchmarks.peers.install`), vLLM's kernel takes its turns too.

A second table has sequences that share their first pages beside sequences with copies of them.

Dims as in `alpage.native.kernels`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor

from alpage import native
from alpage.runtime.ceilings import read_load
from alpage.units import GB, MiB
from benchmarks.peers.attention import VllmAttention
from benchmarks.results_file import Row, save, to_markdown

_NUM_HEADS, _NUM_KV_HEADS, _HEAD_DIM, _PAGE_SIZE = 9, 3, 64, 16
_CONTEXTS = (256, 1024, 2048, 8192)
_BATCHES = (1, 8, 64)
_SHARED = (512, 4096)
_OWN = 128  # tokens of each sequence behind what it shares
_SHARING = (2, 8, 64)
_TOKEN_BYTES = 2 * _NUM_KV_HEADS * _HEAD_DIM * torch.bfloat16.itemsize
_POOL_BYTES = 256 * MiB
_MAX_POOLS = 1000

Measured: TypeAlias = tuple[Row, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """One new token of every sequence."""

    query_start_B1: Tensor  # noqa: N815
    context_B: Tensor  # noqa: N815
    table_BP: Tensor  # noqa: N815

    @property
    def num_pages(self) -> int:
        """Of the pool."""
        return int(self.table_BP.max()) + 1

    @property
    def num_pools(self) -> int:
        """As many as no cache holds."""
        pool_bytes = self.num_pages * _PAGE_SIZE * _TOKEN_BYTES
        return min(_MAX_POOLS, max(2, -(-_POOL_BYTES // pool_bytes)))


def make_step(batch: int, context: int, *, num_shared: int = 0) -> DecodeStep:
    """Return a step of so many sequences, whose first tokens lie on the same pages."""
    pages_each, pages_shared = -(-context // _PAGE_SIZE), num_shared // _PAGE_SIZE
    own = torch.arange(batch * (pages_each - pages_shared)).view(batch, -1) + pages_shared
    pages = torch.cat([torch.arange(pages_shared).expand(batch, -1), own], dim=1)
    return DecodeStep(
        query_start_B1=torch.arange(batch + 1).int(),
        context_B=torch.full((batch,), context).int(),
        table_BP=torch.randperm(int(pages.max()) + 1)[pages].int(),
    )


def decoding(kernels: native.Kernels, step: DecodeStep) -> Callable[[], None]:
    """Return what attends to pools in turn."""
    one = torch.randn(2, step.num_pages, _NUM_KV_HEADS, _PAGE_SIZE, _HEAD_DIM).bfloat16()
    kvs = [one.clone() for _ in range(step.num_pools)]
    q_THK = torch.randn(len(step.context_B), _NUM_HEADS, _HEAD_DIM).bfloat16()

    def run() -> None:
        for kv_2PGSK in kvs:
            kernels.paged_attention(q_THK, kv_2PGSK, step, scale=_HEAD_DIM**-0.5)

    run()
    return run


def seconds(run: Callable[[], object]) -> float:
    """Return what a run takes."""
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def measure_reading(
    kernels: native.Kernels, peer: VllmAttention | None, num_rounds: int
) -> Iterator[Measured]:
    """Measure every context and batch beside a plain read, in turns."""
    plain = read_load(torch.device("cpu"))
    for batch in _BATCHES:
        for context in _CONTEXTS:
            step = make_step(batch, context)
            num_bytes = batch * context * _TOKEN_BYTES
            run = decoding(kernels, step)
            own, read, other = [], [], []
            for _ in range(num_rounds):
                own.append(num_bytes * step.num_pools / seconds(run))
                read.append(plain.amount / seconds(plain.run))
                if peer is not None:
                    shape = {"batch": batch, "context": context, "num_pools": step.num_pools}
                    other.append(num_bytes / peer.call_s(**shape))
            share = median(one / most for one, most in zip(own, read, strict=True))
            row: dict[str, str | float] = {
                "sequences": str(batch),
                "context": f"{context:,}",
                "attention, GB/s": f"{median(own) / GB:.1f}",
                "plain read, GB/s": f"{median(read) / GB:.1f}",
                "share": share,
            }
            figures = {
                "batch": batch,
                "context": context,
                "bytes_per_s": median(own),
                "read_bytes_per_s": median(read),
                "share": share,
            }
            if other:
                row["vLLM, GB/s"] = f"{median(other) / GB:.1f}"
                figures["vllm_bytes_per_s"] = median(other)
            yield row, figures


def measure_sharing(kernels: native.Kernels, num_rounds: int) -> Iterator[Measured]:
    """Measure sequences that share pages beside ones with copies, in turns."""
    for num_shared in _SHARED:
        for batch in _SHARING:
            context = num_shared + _OWN
            steps = [make_step(batch, context, num_shared=num) for num in (num_shared, 0)]
            runs = [decoding(kernels, step) for step in steps]
            pairs = [
                [seconds(run) / step.num_pools for run, step in zip(runs, steps, strict=True)]
                for _ in range(num_rounds)
            ]
            shared_s, copied_s = (median(times) for times in zip(*pairs, strict=True))
            fewer = batch * context / (num_shared + batch * _OWN)
            row = {
                "sequences": str(batch),
                "shared, of tokens": f"{num_shared:,} of {context:,}",
                "on shared pages, µs": f"{shared_s * 1e6:,.0f}",
                "on copies, µs": f"{copied_s * 1e6:,.0f}",
                "times faster": f"{copied_s / shared_s:.1f}",
                "times fewer tokens to read": f"{fewer:.1f}",
            }
            figures = {"batch": batch, "shared": num_shared, "context": context}
            yield row, {**figures, "shared_s": shared_s, "copied_s": copied_s}


@contextmanager
def peer_in(directory: Path | None) -> Iterator[VllmAttention | None]:
    """Start vLLM's kernel, where it is installed."""
    if directory is None or not VllmAttention.is_installed(directory):
        yield None
        return
    with VllmAttention(directory, threads=torch.get_num_threads()) as peer:
        yield peer


def printed(measured: Iterator[Measured]) -> tuple[str, Sequence[dict[str, float]]]:
    """Return a table and its figures."""
    rows, figures = zip(*measured, strict=True)
    table = to_markdown(rows)
    print(table, flush=True)
    return table, figures


def main() -> None:
    """Measure reading, then sharing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="directory that benchmarks.peers.install filled")
    arguments = parser.parse_args()
    kernels = native.load()
    if kernels is None:
        raise SystemExit(native.unavailable_reason())
    with peer_in(arguments.peers) as peer:
        reading, rows = printed(measure_reading(kernels, peer, arguments.rounds))
    sharing, shared_rows = printed(measure_sharing(kernels, arguments.rounds))
    figures = {"threads": torch.get_num_threads(), "rows": rows, "shared": shared_rows}
    save("attention", figures, f"{reading}\n{sharing}")


if __name__ == "__main__":
    main()
