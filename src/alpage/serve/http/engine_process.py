"""Engine process: an engine in a process of its own, that is started again when it dies.

The two ends of a pair of sockets are all that joins it to the service: where one process ends, the
other hears of it at once.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, Final, final

import msgspec

from alpage.errors import AlpageError, RankLost
from alpage.serve.http.engine_link import EngineLink
from alpage.serve.http.engine_messages import (
    Beat,
    Begin,
    Broken,
    Command,
    Down,
    Event,
    Lost,
    News,
    Note,
    Ready,
    decode_event,
    encode,
)
from alpage.serve.http.frames import BadFrame, receive_frame, send_frame
from alpage.serve.http.reports import Report
from alpage.serve.intake import Limits

_LOG: Final = logging.getLogger(__name__)
_PROGRAM: Final = "from alpage.serve.http.engine_program import main; main()"
_GRACE_S: Final = 5.0
# How often kernels' threads look for work before they sleep: as often as libgomp has them do where
# they are more than the cores. With those of the service they are, and it cannot know.
_SPIN: Final = MappingProxyType({"GOMP_SPINCOUNT": "1000"})
# An engine that made no step and lived no longer has died in vain; after so many in a row there is
# no other.
_MIN_LIFE_S: Final = 60.0
_MAX_VAIN: Final = 3
_BACKOFF_S: Final = 1.0


@final
class EngineProcess(EngineLink):
    """An engine in a process, and its successors.

    It is started at once, and has to be waited for.

    Args:
        model: path of the checkpoint.
        **options: fields of `EngineConfig`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._begin = encode(Begin(model, options))
        self._ready: Ready | None = None
        self._hear: Callable[[Event], None] | None = None
        self._failure: AlpageError | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engine-link", daemon=True)
        self._child = _Child(self._begin)

    def wait(self, notify: Callable[[str], None]) -> None:
        """Wait until the engine is there.

        Args:
            notify: takes lines for the user.

        Raises:
            AlpageError: it cannot be; nothing is left of it.
        """
        try:
            self._ready = self._child.ready(notify)
        except BaseException:
            self._child.end()
            raise

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return self._first.limits

    @property
    def report(self) -> Report:
        """How the engine was at first."""
        return self._first.report

    @property
    def pid(self) -> int | None:
        """The process that there is now."""
        return self._child.pid

    @property
    def failure(self) -> AlpageError | None:
        """Why there is none any more, if so."""
        return self._failure

    def start(self, hear: Callable[[Event], None]) -> None:
        """Begin to listen, and to tell."""
        self._hear = hear
        self._thread.start()

    def send(self, command: Command) -> None:
        """Tell the engine that there is."""
        self._child.send(encode(command))

    def stop(self) -> None:
        """End it; return when nothing is left of it."""
        self._is_stopping.set()
        self._child.hang_up()
        self._thread.join()

    @property
    def _first(self) -> Ready:
        assert self._ready is not None, "it was waited for"
        return self._ready

    # -- the thread --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Pass on what the engine says, and have another when it is gone."""
        assert self._hear is not None, "it has begun"
        num_vain = 0
        while True:
            begin_s, has_stepped = time.monotonic(), False
            while (event := self._child.receive()) is not None:
                has_stepped = has_stepped or isinstance(event, News | Beat)
                self._hear(event)
            # The other end may be there still, and make no sense.
            status = self._child.end()
            if self._is_stopping.is_set():
                return
            _LOG.warning("the engine is lost (%s), and is started again", status)
            self._hear(Down())
            is_vain = not has_stepped and time.monotonic() - begin_s < _MIN_LIFE_S
            num_vain = num_vain + 1 if is_vain else 0
            ready = self._again(num_vain)
            if ready is None:
                break
            self._hear(ready)
        if self._failure is not None:
            self._hear(Lost())

    def _again(self, num_vain: int) -> Ready | None:
        """Return what another engine says when it is there; None if there is to be none."""
        reason = "its process died without a step"
        while num_vain < _MAX_VAIN:
            if self._is_stopping.wait(num_vain * _BACKOFF_S):
                return None
            try:
                self._child = _Child(self._begin)
                # Whoever stops it sets the flag first, and hangs up what it then finds.
                if self._is_stopping.is_set():
                    self._child.hang_up()
                return self._child.ready(_LOG.warning)
            except (AlpageError, OSError) as error:
                self._child.end()
                if self._is_stopping.is_set():
                    return None
                _LOG.warning("the engine could not be started again: %s", error)
                reason = str(error)
                num_vain += 1
        self._failure = RankLost(
            field="engine",
            value=f"{_MAX_VAIN} in a row",
            limit=f"was lost; of the last one: {reason}",
            remedy="Check that memory is free, see what was logged before, and start again",
        )
        return None


@final
class _Child:
    """One process, and the way to it.

    What is sent waits for a thread of its own, so that nobody waits for a process that does not
    listen.
    """

    def __init__(self, begin: bytes) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._program = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_SPIN | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
            )
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        self.send(begin)

    @property
    def pid(self) -> int:
        """The system's number of it."""
        return self._program.pid

    def send(self, data: bytes) -> None:
        """Send a message, some time."""
        self._outbox.put(data)

    def receive(self) -> Event | None:
        """Wait for what it says; None: nothing more."""
        try:
            data = receive_frame(self._channel)
            return None if data is None else decode_event(data)
        except (BadFrame, msgspec.MsgspecError):
            _LOG.exception("what the engine says makes no sense")
            return None

    def ready(self, notify: Callable[[str], None]) -> Ready:
        """Wait until it has its engine.

        Raises:
            AlpageError: it has none.
        """
        while True:
            match self.receive():
                case Note(line):
                    notify(line)
                case Ready() as ready:
                    return ready
                case Broken() as broken:
                    raise broken.error
                case _:
                    raise RankLost(
                        field="engine",
                        value=self.pid,
                        limit="its process ended before it was ready",
                        remedy="Check that memory is free, and see what was said before",
                    )

    def hang_up(self) -> None:
        """Have it end by itself."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self) -> str:
        """End it; return how it ended."""
        self.hang_up()
        self._outbox.put(None)
        try:
            self._program.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._writer.join()
        self._channel.close()
        status = self._program.returncode
        return f"status {status}" if status >= 0 else f"signal {-status}"

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                send_frame(self._channel, data)
            except OSError:
                _LOG.debug("a message did not reach the engine", exc_info=True)
