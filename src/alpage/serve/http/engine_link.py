"""Engine link: the way from a service to its engine and back, wherever that runs."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from alpage.errors import AlpageError
from alpage.serve.http.engine_messages import Command, Event
from alpage.serve.http.reports import Report
from alpage.serve.intake import Limits


class EngineLink(Protocol):
    """Commands go in by `send`, events come out by what `start` was given, from other threads."""

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What a request may ask for."""

    @property
    @abstractmethod
    def report(self) -> Report:
        """How the engine was at first."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The engine's process, if it has one of its own."""

    @property
    @abstractmethod
    def failure(self) -> AlpageError | None:
        """Why a service has to end that has lost its engine, if it has to."""

    @abstractmethod
    def start(self, hear: Callable[[Event], None]) -> None:
        """Begin to listen, and to tell."""

    @abstractmethod
    def send(self, command: Command) -> None:
        """Tell the engine, without waiting. What comes while it is down is not heard."""

    @abstractmethod
    def stop(self) -> None:
        """End it, with all that is unfinished; return when nothing is left of it."""
