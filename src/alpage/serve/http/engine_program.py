"""Engine program: what the process of an engine runs: a model, and its talk with the service.

It ends when the service does, whatever it is about: a thread listens from the first moment on.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Final, final

import msgspec

from alpage.errors import AlpageError
from alpage.serve.http.engine_core import EngineCore
from alpage.serve.http.engine_messages import (
    Begin,
    Broken,
    Drop,
    Event,
    Failed,
    News,
    Note,
    Ready,
    decode_begin,
    decode_command,
    encode,
)
from alpage.serve.http.frames import BadFrame, receive_frame, send_frame
from alpage.serve.http.refusals import failed
from alpage.serve.loading import without_collections

_LOG: Final = logging.getLogger(__name__)
# What is left to a step that is being made when the service ends.
_GRACE_S: Final = 1.5


def main() -> None:
    """Serve the socket whose number is the program's argument until it ends."""
    # Signals reach the whole group of processes; who decides is the one that started this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    channel = socket.socket(fileno=int(sys.argv[1]))
    first = receive_frame(channel)
    if first is not None:
        _Program(channel).run(decode_begin(first))


@final
class _Program:
    """An engine behind a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._core: EngineCore | None = None

    def run(self, begin: Begin) -> None:
        """Load the model and make its steps, as long as somebody is there to be told."""
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        try:
            with without_collections():
                from alpage.serve import LLM  # noqa: PLC0415 - the listener comes first

                llm = LLM(begin.model, notify=self._note, **begin.options)
        except AlpageError as error:
            self._tell(Broken.of(error))
            return
        self._core = EngineCore(llm.engine, self._tell)
        self._tell(Ready(llm.engine.limits, self._core.report()))
        self._core.run()

    def _note(self, line: str) -> None:
        self._tell(Note(line))

    def _listen(self) -> None:
        try:
            while (data := receive_frame(self._channel)) is not None:
                assert self._core is not None, "nobody speaks before it is ready"
                self._core.hear(decode_command(data))
        except (BadFrame, msgspec.MsgspecError):
            _LOG.exception("what the service says makes no sense")
        finally:
            if self._core is not None:
                self._core.stop()
                time.sleep(_GRACE_S)
            # There is nobody left to whom anything could matter.
            os._exit(1)

    def _tell(self, event: Event) -> None:
        try:
            data = encode(event)
            with self._sending:
                send_frame(self._channel, data)
        except BadFrame:
            _LOG.exception("an answer is too long")
            assert self._core is not None, "an answer is to a question"
            assert isinstance(event, News), "nothing else is long"
            for ticket in event.pieces:
                self._core.hear(Drop(ticket))
                self._tell(Failed(ticket, failed().plain))
        except OSError:
            _LOG.debug("the service is gone; the listener knows")
