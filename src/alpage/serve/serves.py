"""Serves: the face of an engine and of a fleet of engines."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, TypeAlias

from alpage.serve.batch import Batch
from alpage.serve.intake import Intake, Limits
from alpage.serve.kv_memory import KvUsage
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.request import Request

if TYPE_CHECKING:
    from alpage.serve.engine import Engine

# Sees a step once it has run and before it is committed, and may ask for the memory that it ran in,
# for which all pages are looked at.
Observe: TypeAlias = Callable[[Batch, Callable[[], KvUsage]], None]


class Serves(ABC):
    """Requests go in by `add`, tokens come out by `step`.

    Args:
        intake: makes the requests.
    """

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self._abandoned: deque[str] = deque()

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return self.intake.limits

    @property
    @abstractmethod
    def engines(self) -> tuple["Engine", ...]:
        """Those that make the steps, each with pages of its own."""

    @property
    @abstractmethod
    def has_unfinished(self) -> bool:
        """Whether another step would do something."""

    def add(
        self,
        prompt_tokens: Seq[int],
        params: SamplingParams | BeamSearchParams,
        *,
        prompt: str | None = None,
        request_id: str | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> Request:
        """Queue a request.

        Args:
            prompt_tokens: token ids, at least one.
            params: how to go on from them.
            prompt: their text, for the output.
            request_id: a name that no unfinished request has; None makes one.
            priority: from -1,000 to 1,000; the lower, the sooner it is served: each level lets
                1,000 later requests pass.
            salt: only requests of equal salt share cached prefixes.

        Raises:
            InvalidValue: the prompt is empty, too long or not of this vocabulary; the name is
                taken.
            OutOfMemory: it could not finish even if it were alone.
        """
        request = self.intake.request(
            prompt_tokens,
            params,
            prompt=prompt,
            request_id=request_id,
            priority=priority,
            salt=salt,
        )
        self.take(request)
        return request

    @abstractmethod
    def take(self, request: Request) -> None:
        """Queue a request that the intake has made.

        Raises:
            InvalidValue: its name is taken.
        """

    @abstractmethod
    def holds(self, request_id: str) -> bool:
        """Whether a request of this name is unfinished."""

    @abstractmethod
    def abort(self, request_id: str) -> Request:
        """End a request where it is, whatever its state; its pages are free at once."""

    def abandon(self, request_id: str) -> None:
        """Abort a request before the next step.

        Unlike `abort` it may be called at any time, in the middle of a step and by the garbage
        collector.
        """
        self._abandoned.append(request_id)

    @abstractmethod
    def step(self, observe: Observe | None = None) -> list[Request]:
        """Make one step; return the requests that gained tokens, finished ones among them."""

    def _abort_abandoned(self) -> None:
        while self._abandoned:
            request_id = self._abandoned.popleft()
            if self.holds(request_id):
                self.abort(request_id)
