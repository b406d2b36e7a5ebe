"""Processes: ranks of a mesh that stay until they are stopped, and answer to messages.

A message goes to all ranks, the answer comes from the first. Whatever happens, a call ends by its
deadline with an answer or an error, and after an error no process is left. The ranks end by
themselves when this process does, since their pipes end with it.

They are started as programs of their own, not by `multiprocessing`, which would run the caller's
main module once more in each.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, final

import msgspec

from alpage.errors import RankLost
from alpage.runtime.rank import Answer, Begin

_GRACE_S = 2.0
_PROGRAM = "from alpage.runtime.rank import main; main()"


@final
class Processes:
    """Processes that are the ranks of a mesh, on this machine.

    Args:
        work: a function of a module, found by its name and called as `work(rank, port, *arguments)`
            in each process; the first rank answers once when it is ready, and then to what it is
            asked.
        num_ranks: processes.
        arguments: values that have a form in MessagePack; dataclasses arrive as tables.
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
        self._folder = tempfile.TemporaryDirectory(prefix="alpage-ranks-")
        self._programs: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        self.stop = weakref.finalize(self, _stop, self._programs, self._pipes, self._folder)
        for rank in range(num_ranks):
            self._start(rank)
            begin = Begin(
                work=f"{work.__module__}:{work.__qualname__}",
                arguments=arguments,
                rank=rank,
                num_ranks=num_ranks,
                backend=backend,
                rendezvous=f"file://{self._folder.name}/rendezvous",
                step_s=step_s,
            )
            self._pipes[rank].send_bytes(msgspec.msgpack.encode(begin))
        self._receive(start_s)

    @property
    def pids(self) -> tuple[int, ...]:
        """The system's numbers of the processes, by rank."""
        return tuple(program.pid for program in self._programs)

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

    def _start(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            program = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
            )
        self._programs.append(program)
        self._pipes.append(Connection(ours.detach()))
        assert len(self._pipes) == rank + 1, "ranks start in order"

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
            answer = msgspec.msgpack.decode(pipe.recv_bytes(), type=Answer)
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
    programs: list[subprocess.Popen[bytes]],
    pipes: list[Connection],
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """End the pipes, and the processes that do not end with them."""
    for pipe in pipes:
        pipe.close()
    end_s = time.monotonic() + _GRACE_S
    for program in programs:
        try:
            program.wait(max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    folder.cleanup()
