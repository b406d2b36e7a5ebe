"""Mesh runner: the engine's steps, made by the ranks of a mesh."""

from typing import final

from alpage.runtime import Processes
from alpage.serve.batch import Batch
from alpage.serve.messages import Close, Open, Run, decode_results, encode
from alpage.serve.results import RowResult
from alpage.serve.runner import Profile
from alpage.serve.slots import DrawRule


@final
class MeshRunner:
    """Tells every rank the same; what the first one drew is the result.

    Args:
        processes: the ranks, ready.
        profile: of the whole model.
    """

    def __init__(self, processes: Processes, profile: Profile) -> None:
        self.profile = profile
        self._processes = processes

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""
        self._processes.tell(encode(Open.of(request_id, rule)))

    def close(self, request_id: str) -> None:
        """Forget a request; with the ranks everything is forgotten."""
        if self._processes.is_running:
            self._processes.tell(encode(Close(request_id)))

    def run(self, batch: Batch) -> list[RowResult]:
        """Make a step; return what each row gave.

        Raises:
            RankLost: a rank failed, died or took too long; none is left.
        """
        return decode_results(self._processes.ask(encode(Run(batch))))

    @property
    def pids(self) -> tuple[int, ...]:
        """The system's numbers of the processes, by rank."""
        return self._processes.pids

    def stop(self) -> None:
        """End the ranks."""
        self._processes.stop()
