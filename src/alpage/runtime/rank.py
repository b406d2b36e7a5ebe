"""Rank: the program that one process of a mesh runs."""

import contextlib
import importlib
import os
import signal
import sys
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, final

import msgspec
import torch.distributed as dist


@final
class Begin(msgspec.Struct):
    """The first message: which rank this is, and what it does.

    Attributes:
        work: "module:function", called as `work(rank, port, *arguments)`.
        arguments: its plain values.
        rank: its number.
        num_ranks: of all.
        backend: of `torch.distributed`.
        rendezvous: where the ranks meet.
        step_s: seconds that a collective may take.
    """

    work: str
    arguments: tuple[Any, ...]
    rank: int
    num_ranks: int
    backend: str
    rendezvous: str
    step_s: float


@final
class Answer(msgspec.Struct, array_like=True):
    """What a rank sends back: data, or why there is none."""

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
        self._connection.send_bytes(msgspec.msgpack.encode(Answer(data)))


def main() -> None:
    """Serve the pipe whose number is the program's argument until it ends."""
    # Ctrl-C reaches the whole group of processes; who decides is the one that started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        begin = msgspec.msgpack.decode(connection.recv_bytes(), type=Begin)
        _join(begin)
        module, _, name = begin.work.partition(":")
        work = getattr(importlib.import_module(module), name)
        work(begin.rank, Port(connection), *begin.arguments)
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked says it
        answer = Answer(b"", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            connection.send_bytes(msgspec.msgpack.encode(answer))
    # Others may be waiting for this rank in a collective; nothing is worth waiting for them.
    os._exit(0)


def _join(begin: Begin) -> None:
    # Without a word on it, gloo looks the host's name up, which need not lead anywhere.
    if begin.backend == "gloo" and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        begin.backend,
        init_method=begin.rendezvous,
        rank=begin.rank,
        world_size=begin.num_ranks,
        timeout=timedelta(seconds=begin.step_s),
    )
