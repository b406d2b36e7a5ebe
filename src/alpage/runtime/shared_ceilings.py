"""Shared ceilings: what each of several processes gets of this machine while all of them work.

Every rate is taken from one barrier to the next, so that nobody is measured while others rest: what
one gets is what remains if everybody wants it. Collectives are those that a partitioned
model uses.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import msgspec
import torch
import torch.distributed as dist

from alpage.hardware import resolve_cluster
from alpage.partition import Communicator, ProcessGroups
from alpage.runtime.ceilings import Load, matmul_load, read_load
from alpage.runtime.link_fit import KINDS, TimedCollective
from alpage.runtime.local_group import run_on_ranks
from alpage.units import KiB, MiB

# Bytes of the whole tensor, and how often a collective is called in a row.
_NUM_CALLS = {16 * KiB: 50, MiB: 20, 16 * MiB: 3}
_NUM_ROUNDS = 3
_BUDGET_S = 0.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCeilings:
    """What each of several processes reached while all of them worked.

    Attributes:
        flops_per_s: dtype -> operations a second in matrix products, of one process.
        memory_bytes_per_s: that one process read.
        collectives: times of collectives between the processes; none of one process.
    """

    flops_per_s: Mapping[str, float]
    memory_bytes_per_s: float
    collectives: tuple[TimedCollective, ...]


def measure_shared_ceilings(
    num_ranks: int,
    *,
    device_type: str,
    dtypes: Sequence[str],
    num_threads: int,
    deadline_s: float,
) -> SharedCeilings:
    """Measure this machine in new processes that do the same at the same time.

    Args:
        num_ranks: processes.
        device_type: "cpu", or "cuda": rank r has GPU r.
        dtypes: whose matrix products are measured, by PyTorch's names.
        num_threads: of each process.
        deadline_s: seconds that it may take.

    Raises:
        Unsupported: a process failed or died, or the deadline passed.
    """
    answers = run_on_ranks(
        _measure,
        num_ranks,
        (num_ranks, device_type, tuple(dtypes), num_threads),
        backend="nccl" if device_type == "cuda" else "gloo",
        deadline_s=deadline_s,
    )
    # A rank's rates span the same barriers; its own clock is all that differs.
    answer = answers[0]
    return SharedCeilings(
        flops_per_s=answer["flops_per_s"],
        memory_bytes_per_s=answer["memory_bytes_per_s"],
        collectives=tuple(TimedCollective(**fields) for fields in answer["collectives"]),
    )


@torch.inference_mode()
def _measure(
    rank: int, num_ranks: int, device_type: str, dtypes: tuple[str, ...], num_threads: int
) -> dict[str, Any]:
    torch.set_num_threads(num_threads)
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = resolve_cluster(f"cpu-{num_ranks}").mesh(x=num_ranks)
    communicator = ProcessGroups(mesh)
    num_readers = 1 if device.type == "cuda" else num_ranks
    return {
        "flops_per_s": {
            name: _shared_per_s(matmul_load(device, getattr(torch, name)), device)
            for name in dtypes
        },
        "memory_bytes_per_s": _shared_per_s(read_load(device, num_readers=num_readers), device),
        "collectives": [
            msgspec.to_builtins(_timed_collective(kind, num_bytes, communicator, device))
            for kind in KINDS
            for num_bytes in _NUM_CALLS
            if num_ranks > 1
        ],
    }


def _timed_collective(
    kind: str, num_bytes: int, communicator: Communicator, device: torch.device
) -> TimedCollective:
    """Return the time of one call, the best of a few rounds of them, on a tensor of that size."""
    num_calls, num_ranks = _NUM_CALLS[num_bytes], dist.get_world_size()
    ranks = tuple(range(num_ranks))
    shard = torch.zeros(num_bytes // num_ranks // torch.float32.itemsize, device=device)
    shards = [shard] * num_ranks
    full = torch.cat(shards)
    calls: dict[str, Callable[[], object]] = {
        "all_gather": lambda: communicator.all_gather(shard, ranks),
        "reduce_scatter": lambda: communicator.reduce_scatter(shards, ranks),
        "all_reduce": lambda: communicator.all_reduce(full, ranks),
        "all_to_all": lambda: communicator.all_to_all(shards, ranks),
    }
    _span_s(calls[kind], 2, device)
    time_s = min(_span_s(calls[kind], num_calls, device) for _ in range(_NUM_ROUNDS)) / num_calls
    return TimedCollective(kind=kind, num_ranks=num_ranks, full_bytes=full.nbytes, time_s=time_s)


def _shared_per_s(load: Load, device: torch.device) -> float:
    """Return the amount a second of one rank, the best of a few rounds, after a run to warm up."""
    _span_s(load.run, 1, device)
    num_runs = max(1, round(_agreed(_BUDGET_S / _span_s(load.run, 1, device), device)))
    return load.amount * num_runs / min(_span_s(load.run, num_runs, device) for _ in range(2))


def _span_s(run: Callable[[], object], num_runs: int, device: torch.device) -> float:
    """Return the time from when all ranks are ready until all of them have done their runs."""
    dist.barrier()
    _wait_for(device)
    start_s = time.perf_counter()
    for _ in range(num_runs):
        run()
    _wait_for(device)
    dist.barrier()
    _wait_for(device)
    return time.perf_counter() - start_s


def _agreed(number: float, device: torch.device) -> float:
    """Return the largest of all ranks' numbers."""
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
