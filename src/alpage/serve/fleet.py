"""Fleet: replicas of a model that share the requests, each with an engine and pages of its own.

No lockstep: whoever answers first gets its next step, whatever the others do.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeAlias, final

from alpage.errors import InvalidValue, RankLost
from alpage.serve.batch import Batch
from alpage.serve.engine import Engine
from alpage.serve.intake import Intake
from alpage.serve.kv_memory import KvUsage
from alpage.serve.request import Request
from alpage.serve.serves import Observe, Serves

# Returns those of some file descriptors that can be read, none if the seconds pass before.
Wait: TypeAlias = Callable[[Seq[int], float], Seq[Any]]


def route(num_queued_tokens: Seq[int], num_own_tokens: Seq[int]) -> int:
    """Return the replica that would be done first with a request and all it has: the first such.

    So a prompt goes where its prefix is cached, unless there is more to do there by as much.

    Args:
        num_queued_tokens: tokens that each still has to compute.
        num_own_tokens: tokens of the request that each would have to compute.

    >>> route([300, 0], [20, 400])
    0
    >>> route([500, 0], [20, 400])
    1
    """
    totals = [queued + own for queued, own in zip(num_queued_tokens, num_own_tokens, strict=True)]
    return totals.index(min(totals))


@final
class _Replica:
    """An engine, and what it still has to compute.

    Attributes:
        number: its place in the fleet.
        turn: when its step began, as the steps of the fleet are counted.
        num_queued_tokens: of all its requests together, if none ends early.
    """

    def __init__(self, number: int, engine: Engine) -> None:
        self.number = number
        self.engine = engine
        self.turn = 0
        self.num_queued_tokens = 0
        self._left: dict[str, int] = {}

    def num_own_tokens(self, request: Request) -> int:
        """Return what it would have to compute of a request, if that does not end early."""
        group = request.group
        num_prompt = len(group.prompt_tokens) - self.engine.num_cached_tokens(request)
        return num_prompt + group.num_sequences * group.max_new_tokens

    def take(self, request: Request) -> None:
        """Queue a request."""
        num_tokens = self.num_own_tokens(request)
        self.engine.take(request)
        self._set(request.request_id, num_tokens)

    def computed(self, batch: Batch) -> None:
        """Note that a step has run. What preemption makes it compute twice counts once."""
        for row in batch.rows:
            left = self._left.get(row.request_id, 0)
            if left:
                self._set(row.request_id, max(0, left - len(row.tokens)))

    def drop(self, request_id: str) -> None:
        """Note that a request is over."""
        self.num_queued_tokens -= self._left.pop(request_id, 0)

    def clear(self) -> None:
        """Note that all requests are over."""
        self._left.clear()
        self.num_queued_tokens = 0

    def _set(self, request_id: str, num_tokens: int) -> None:
        self.num_queued_tokens += num_tokens - self._left.get(request_id, 0)
        self._left[request_id] = num_tokens


@final
class Fleet(Serves):
    """Several engines behind the face of one.

    A request stays with the replica that `route` names when it comes. A step of the fleet is the
    step of one replica. If that fails, the requests of this replica end with its error and the
    others go on; a replica whose ranks are lost gets no more requests, unless it is the last.

    Args:
        engines: of equal limits, all with the same intake.
        intake: makes the requests.
        wait: returns file descriptors that can be read.
    """

    def __init__(self, engines: Seq[Engine], intake: Intake, *, wait: Wait = wait) -> None:
        super().__init__(intake)
        self._replicas = [_Replica(number, engine) for number, engine in enumerate(engines)]
        self._turns = itertools.count(1)
        self._wait = wait

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that are not lost."""
        return tuple(replica.engine for replica in self._replicas)

    @property
    def has_unfinished(self) -> bool:
        """Whether another step would do something."""
        self._abort_abandoned()
        return any(engine.has_unfinished for engine in self.engines)

    def take(self, request: Request) -> None:
        """Queue a request that the intake has made, at the replica that has the least to do."""
        if self.holds(request.request_id):
            raise InvalidValue(
                field="request_id",
                value=request.request_id,
                limit="is the name of a request that is not finished",
                remedy="Choose another, or leave it out",
            )
        number = route(
            [replica.num_queued_tokens for replica in self._replicas],
            [replica.num_own_tokens(request) for replica in self._replicas],
        )
        self._replicas[number].take(request)

    def holds(self, request_id: str) -> bool:
        """Whether a request of this name is unfinished."""
        return any(engine.holds(request_id) for engine in self.engines)

    def abort(self, request_id: str) -> Request:
        """End a request where it is, whatever its state; its pages are free at once."""
        replica = next(r for r in self._replicas if r.engine.holds(request_id))
        replica.drop(request_id)
        return replica.engine.abort(request_id)

    def step(self, observe: Observe | None = None) -> list[Request]:
        """Begin a step wherever none is under way, and end the first that is answered.

        Returns:
            The requests that gained tokens by it, finished ones among them.

        Raises:
            RankLost: a replica's ranks failed, died or took too long; none of them is left.
        """
        self._abort_abandoned()
        for replica in tuple(self._replicas):
            if not replica.engine.has_begun:
                with self._failing(replica):
                    replica.engine.begin()
                replica.turn = next(self._turns)
        under_way = [replica for replica in self._replicas if replica.engine.has_begun]
        if not under_way:
            return []
        replica = self._first(sorted(under_way, key=lambda replica: replica.turn))

        def note(batch: Batch, usage: Callable[[], KvUsage]) -> None:
            replica.computed(batch)
            if observe is not None:
                observe(batch, usage)

        with self._failing(replica):
            advanced = replica.engine.end(note)
        for request in advanced:
            if request.is_finished:
                replica.drop(request.request_id)
        return advanced

    def _first(self, replicas: Seq[_Replica]) -> _Replica:
        """Wait for an answer; return whose it is: of several the first in order.

        If one does not answer in time it is the one, since to end its step tells so.
        """
        signals = {replica.number: replica.engine.runner.signals for replica in replicas}
        due = min(replicas, key=lambda replica: replica.engine.runner.due_s)
        if all(signals.values()):
            left_s = max(0.0, due.engine.runner.due_s - time.monotonic())
            ready = set(self._wait([s for each in signals.values() for s in each], left_s))
        else:
            ready = set()
        for replica in replicas:
            own = signals[replica.number]
            if not own or not ready.isdisjoint(own):
                return replica
        return due

    @contextmanager
    def _failing(self, replica: _Replica) -> Iterator[None]:
        """Note that a replica's requests are over if it fails, and part with it if it is lost."""
        try:
            yield
        except RankLost as error:
            replica.clear()
            if len(self._replicas) == 1:
                raise
            self._replicas.remove(replica)
            raise RankLost(
                field=f"replica {replica.number}, {error.field}",
                value=error.value,
                limit=f"{error.limit}; its requests are lost, the other replicas go on",
                remedy=error.remedy,
            ) from error
        except BaseException:
            replica.clear()
            raise
