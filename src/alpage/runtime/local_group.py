"""Local group: a function run at once by several processes of this machine, joined by collectives.

Each process is a rank of a `torch.distributed` group. Whatever happens, a call ends by its deadline
and leaves no process behind.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist

from alpage.errors import RankLost

# What a process gets to leave by itself once it has answered.
_GRACE_S = 2.0


def run_on_ranks(
    work: Callable[..., Any],
    num_ranks: int,
    arguments: tuple[Any, ...],
    *,
    backend: str,
    deadline_s: float,
) -> list[Any]:
    """Return what `work(rank, *arguments)` returns in a process for each rank, in their order.

    The processes are new ones, not forks: threads and devices of this one do not reach them.

    Args:
        work: a function of a module. What it returns has to have a form in JSON.
        num_ranks: processes.
        arguments: plain values.
        backend: "gloo" or "nccl".
        deadline_s: seconds that all of it may take.

    Raises:
        RankLost: a process failed or died, or the deadline passed.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    answers: list[Connection] = []
    end_s = time.monotonic() + deadline_s
    with tempfile.TemporaryDirectory(prefix="alpage-group-") as folder:
        try:
            for rank in range(num_ranks):
                answer, sender = context.Pipe(duplex=False)
                answers.append(answer)
                group = {
                    "backend": backend,
                    "init_method": f"file://{folder}/rendezvous",
                    "rank": rank,
                    "world_size": num_ranks,
                    "timeout": timedelta(seconds=deadline_s),
                }
                process = context.Process(
                    target=_run, args=(sender, work, arguments, group), daemon=True
                )
                process.start()
                processes.append(process)
                # Ours is closed, so that the pipe ends when the process does.
                sender.close()
            results = _gather(answers, end_s, deadline_s)
            for process in processes:
                process.join(_GRACE_S)
            return results
        finally:
            for process in processes:
                process.kill()
                process.join()
            for answer in answers:
                answer.close()


def _gather(answers: list[Connection], end_s: float, deadline_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(answers):
        missing = [rank for rank in range(len(answers)) if rank not in results]
        ready = wait([answers[rank] for rank in missing], max(0.0, end_s - time.monotonic()))
        if not ready:
            raise _failure(missing[0], f"has not answered within {deadline_s:g} s")
        for rank in missing:
            if answers[rank] in ready:
                results[rank] = _received(answers[rank], rank)
    return [results[rank] for rank in range(len(answers))]


def _received(answer: Connection, rank: int) -> Any:
    try:
        message = msgspec.json.decode(answer.recv_bytes())
    except EOFError as error:
        raise _failure(rank, "died") from error
    if "error" in message:
        raise _failure(rank, f"failed: {message['error']}")
    return message["result"]


def _failure(rank: int, reason: str) -> RankLost:
    return RankLost(
        field="rank",
        value=rank,
        limit=f"its process {reason}",
        remedy="Check that memory and processors are free, and try again with fewer processes",
    )


def _run(
    sender: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    group: dict[str, Any],
) -> None:
    """Join the group, work, and send the result or the reason why there is none."""
    # Ctrl-C reaches the whole group of processes; the parent is who decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Without a word on it, gloo looks the host's name up, which need not lead anywhere.
        if group["backend"] == "gloo" and Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(**group)
        message = {"result": work(group["rank"], *arguments)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        message = {"error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(BrokenPipeError):
        sender.send_bytes(msgspec.json.encode(message))
    if dist.is_initialized() and "error" not in message:
        dist.destroy_process_group()
