"""Mesh runner: the engine's steps, made by the ranks of a mesh."""

from collections.abc import Sequence
from typing import final

from alpage.runtime import Processes
from alpage.serve.batch import Batch
from alpage.serve.messages import Close, Open, Run, decode_results, encode
from alpage.serve.results import RowResult
from alpage.serve.runs import Profile, Runs
from alpage.serve.slots import DrawRule


@final
class MeshRunner(Runs):
    """Tells every rank the same; what the first one drew is the result.

    Args:
        processes: the ranks, ready.
        profile: of the whole model.
    """

    def __init__(self, processes: Processes, profile: Profile) -> None:
        self.profile = profile
        self._processes = processes
        # While the ranks compute they do not listen: what they have to know comes with the step.
        self._news: list[bytes] = []

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""
        self._news.append(encode(Open.of(request_id, rule)))

    def close(self, request_id: str) -> None:
        """Forget a request."""
        self._news.append(encode(Close(request_id)))

    def start(self, batch: Batch) -> None:
        """Begin a step.

        Raises:
            RankLost: a rank failed, died or does not listen; none is left.
        """
        if self._processes.is_asked:
            # Somebody was interrupted while they waited for it.
            self._processes.answer()
        news, self._news = self._news, []
        for message in news:
            self._processes.tell(message)
        self._processes.ask(encode(Run(batch)))

    def finish(self) -> list[RowResult]:
        """Return what each row of the step gave.

        Raises:
            RankLost: a rank failed, died or took too long; none is left.
        """
        return decode_results(self._processes.answer())

    @property
    def signals(self) -> Sequence[int]:
        """The ranks' pipes."""
        return self._processes.signals

    @property
    def due_s(self) -> float:
        """When the ranks are given up, if they have not answered."""
        return self._processes.due_s

    @property
    def pids(self) -> tuple[int, ...]:
        """The system's numbers of the processes, by rank."""
        return self._processes.pids

    def stop(self) -> None:
        """End the ranks."""
        self._processes.stop()
