"""Engine thread: an engine in the process of its service."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from alpage.serve.http.engine_core import EngineCore
from alpage.serve.http.engine_link import EngineLink
from alpage.serve.http.engine_messages import Command, Event, Lost
from alpage.serve.serves import Serves

if TYPE_CHECKING:
    from alpage.errors import AlpageError
    from alpage.serve.http.reports import Report
    from alpage.serve.intake import Limits


@final
class EngineThread(EngineLink):
    """An engine that makes its steps in a thread; if it is lost, it stays so.

    Args:
        engine: nobody else may touch it meanwhile.
    """

    def __init__(self, engine: Serves) -> None:
        self.core = EngineCore(engine, self._tell)
        self._limits = engine.limits
        self._hear: Callable[[Event], None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def limits(self) -> "Limits":
        """What a request may ask for."""
        return self._limits

    @property
    def report(self) -> "Report":
        """How the engine was at first."""
        return self.core.report()

    @property
    def pid(self) -> int | None:
        """None: it has no process of its own."""
        return None

    @property
    def failure(self) -> "AlpageError | None":
        """None: a service outlives it, to say so."""
        return None

    def start(self, hear: Callable[[Event], None]) -> None:
        """Begin to listen, and to tell."""
        self._hear = hear
        self._thread.start()

    def send(self, command: Command) -> None:
        """Tell the engine."""
        self.core.hear(command)

    def stop(self) -> None:
        """End after the step that is being made."""
        self.core.stop()
        self._thread.join()

    def _run(self) -> None:
        if not self.core.run():
            self._tell(Lost())

    def _tell(self, event: Event) -> None:
        assert self._hear is not None, "it has begun"
        self._hear(event)
