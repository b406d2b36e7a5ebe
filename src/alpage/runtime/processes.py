"""Processes: ranks of a mesh that stay until they are stopped, and answer to messages.

A message goes to all ranks, the answer comes from the first. Whatever happens, a call ends by its
deadline with an answer or an error, and after an error no process is left. The ranks end by
themselves when this process does, since their pipes end with it.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, final

import msgspec
import torch.distributed as dist

from alpage.errors import RankLost

_GRACE_S = 2.0


@final
class _Answer(msgspec.Struct, array_like=True):
    """What a rank sends back."""

    data: bytes
    error: str | None = None


@final
class Port:
    """A rank's end of its pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def receive(self) -> bytes:
        """Return the next message.

        Raises:
            EOFError: there will be none.
        """
        return self._connection.recv_bytes()

    def answer(self, data: bytes) -> None:
        """Send an answer."""
        self._connection.send_bytes(msgspec.msgpack.encode(_Answer(data)))


@final
class Processes:
    """Processes that are the ranks of a mesh, on this machine.

    Args:
        work: a function of a module, called as `work(rank, port, *arguments)` in each process; the
            first rank answers once when it is ready, and then to what it is asked.
        num_ranks: processes.
        arguments: plain values.
        backend: of `torch.distributed`: "gloo" or "nccl".
        start_s: seconds until the first rank is ready.
        step_s: seconds for every answer and every collective.

    Raises:
        RankLost: a process failed, died or was not ready in time.
    """

    def __init__(
        self,
        work: Callable[..., None],
        num_ranks: int,
        arguments: tuple[Any, ...],
        *,
        backend: str,
        start_s: float,
        step_s: float,
    ) -> None:
        self._step_s = step_s
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="alpage-ranks-")
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self.stop = weakref.finalize(self, _stop, self._processes, self._pipes, self._folder)
        for rank in range(num_ranks):
            pipe, theirs = context.Pipe()
            group = {
                "backend": backend,
                "init_method": f"file://{self._folder.name}/rendezvous",
                "rank": rank,
                "world_size": num_ranks,
                "timeout": timedelta(seconds=step_s),
            }
            process = context.Process(
                target=_run, args=(theirs, work, arguments, group), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(pipe)
        self._receive(start_s)

    @property
    def is_running(self) -> bool:
        """Whether there are ranks; they are gone after an error or `stop`."""
        return bool(self.stop.alive)

    def tell(self, message: bytes) -> None:
        """Send a message that has no answer to all ranks.

        Raises:
            RankLost: a process died, now or before.
        """
        if not self.is_running:
            raise self._lost(0, "is gone")
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(message)
            except OSError as error:
                raise self._lost(rank, "died") from error

    def ask(self, message: bytes) -> bytes:
        """Send a message to all ranks and return the first one's answer.

        Raises:
            RankLost: a process failed or died, or the deadline passed.
        """
        self.tell(message)
        return self._receive(self._step_s)

    def _receive(self, deadline_s: float) -> bytes:
        end_s = time.monotonic() + deadline_s
        while True:
            ready = wait(self._pipes, max(0.0, end_s - time.monotonic()))
            if not ready:
                raise self._lost(0, f"has not answered within {deadline_s:g} s")
            # An error of any rank comes first: the others wait for it in vain.
            answers = {
                rank: self._answer(rank, pipe)
                for rank, pipe in enumerate(self._pipes)
                if pipe in ready
            }
            if 0 in answers:
                return answers[0]

    def _answer(self, rank: int, pipe: Connection) -> bytes:
        try:
            answer = msgspec.msgpack.decode(pipe.recv_bytes(), type=_Answer)
        except (EOFError, OSError) as error:
            raise self._lost(rank, "died") from error
        if answer.error is not None:
            raise self._lost(rank, f"failed: {answer.error}")
        return answer.data

    def _lost(self, rank: int, reason: str) -> RankLost:
        self.stop()
        return RankLost(
            field="rank",
            value=rank,
            limit=f"its process {reason}",
            remedy="Check that memory and processors are free, and start again",
        )


def _stop(
    processes: list[SpawnProcess],
    pipes: list[Connection],
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """End the pipes, and the processes that do not end with them."""
    for pipe in pipes:
        pipe.close()
    end_s = time.monotonic() + _GRACE_S
    for process in processes:
        process.join(max(0.0, end_s - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    folder.cleanup()


def _run(
    connection: Connection,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    group: dict[str, Any],
) -> None:
    # Ctrl-C reaches the whole group of processes; the parent is who decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without a word on it, gloo looks the host's name up, which need not lead anywhere.
    if group["backend"] == "gloo" and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(**group)
        work(group["rank"], Port(connection), *arguments)
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        answer = _Answer(b"", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            connection.send_bytes(msgspec.msgpack.encode(answer))
    # Others may be waiting for this rank in a collective; nothing is worth waiting for them.
    os._exit(0)
