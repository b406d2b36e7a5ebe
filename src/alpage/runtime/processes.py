"""Processes: ranks of a mesh that stay until they are stopped, and answer to messages.

A message goes to all ranks, the answer comes from the first. Between question and answer the caller
may do something else, such as ask other processes. Whatever happens, a call ends by its deadline
with an answer or an error, and after an error no process is left. The ranks end by themselves when
this process does, since their pipes end with it.

They are started as programs of their own, not by `multiprocessing`, which would run the caller's
main module once more in each.
"""

import math
import os
import socket
import struct
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

    They start at once, and owe an answer from the start: that they are ready.

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
        RankLost: a process died.
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
        self.due_s = time.monotonic() + start_s
        self.is_asked = True
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
            self._send(rank, msgspec.msgpack.encode(begin))

    @property
    def pids(self) -> tuple[int, ...]:
        """The system's numbers of the processes, by rank."""
        return tuple(program.pid for program in self._programs)

    @property
    def is_running(self) -> bool:
        """Whether there are ranks; they are gone after an error or `stop`."""
        return bool(self.stop.alive)

    @property
    def signals(self) -> tuple[int, ...]:
        """File descriptors, one of which can be read once there is an answer or an error."""
        return tuple(pipe.fileno() for pipe in self._pipes) if self.is_running else ()

    def tell(self, message: bytes) -> None:
        """Send a message that has no answer to all ranks.

        Raises:
            RankLost: a process died, now or before, or does not listen.
        """
        assert not self.is_asked, "ranks that have something to say may not be listening"
        if not self.is_running:
            raise self._lost(0, "is gone")
        for rank in range(len(self._pipes)):
            self._send(rank, message)

    def ask(self, message: bytes) -> None:
        """Send a message to all ranks that the first one is going to answer.

        Raises:
            RankLost: a process died, now or before, or does not listen.
        """
        self.tell(message)
        self.due_s = time.monotonic() + self._step_s
        self.is_asked = True

    def answer(self) -> bytes:
        """Wait for what was asked for last.

        Raises:
            RankLost: a process failed or died, or the deadline `due_s` passed.
        """
        assert self.is_asked, "nobody has asked"
        if not self.is_running:
            raise self._lost(0, "is gone")
        while True:
            ready = wait(self._pipes, max(0.0, self.due_s - time.monotonic()))
            if not ready:
                raise self._lost(0, "has not answered in time")
            # An error of any rank comes first: the others wait for it in vain.
            answers = {
                rank: self._receive(rank) for rank, pipe in enumerate(self._pipes) if pipe in ready
            }
            if 0 in answers:
                self.is_asked = False
                return answers[0]

    def _start(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        # A rank that stops in the middle of a message must not keep anybody for ever.
        for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("@ll", math.ceil(self._step_s), 0))
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

    def _send(self, rank: int, message: bytes) -> None:
        try:
            self._pipes[rank].send_bytes(message)
        except BlockingIOError as error:
            raise self._lost(rank, "does not listen") from error
        except OSError as error:
            raise self._lost(rank, "died") from error
        except BaseException:
            # Half a message is none, and ranks that have heard different things disagree.
            self.stop()
            raise

    def _receive(self, rank: int) -> bytes:
        try:
            answer = msgspec.msgpack.decode(self._pipes[rank].recv_bytes(), type=Answer)
        except BlockingIOError as error:
            raise self._lost(rank, "has not answered in time") from error
        except (EOFError, OSError) as error:
            raise self._lost(rank, "died") from error
        except BaseException:
            self.stop()
            raise
        if answer.error is not None:
            raise self._lost(rank, f"failed: {answer.error}")
        return answer.data

    def _lost(self, rank: int, reason: str) -> RankLost:
        self.is_asked = False
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
