"""Engine: many requests, one step at a time: schedule, run, commit."""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

from alpage.errors import InvalidValue
from alpage.serve.allocation import allocating
from alpage.serve.batch import Batch, Row
from alpage.serve.intake import Intake
from alpage.serve.pace import Pace, num_chunk_tokens
from alpage.serve.request import Request
from alpage.serve.results import RowResult
from alpage.serve.runs import Runs
from alpage.serve.scheduler import Scheduler
from alpage.serve.serves import Observe, Serves


@final
@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that has begun, and the requests that its rows belong to."""

    batch: Batch
    requests: dict[str, Request]
    begin_s: float


@final
class Engine(Serves):
    """One scheduler, its pages and what computes them.

    A step can be made in two halves, `begin` and `end`. What is added or aborted between them is
    seen by the next step.

    Args:
        scheduler: decides steps.
        runner: makes them.
        intake: makes the requests.
        pace: of steps that mix prompts with single tokens; None: as many as a step may have.

    Attributes:
        num_steps: that were made.
        num_computed_tokens: in them, of prompts and answers.
        num_drawn_tokens: that came of them.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runs, intake: Intake, pace: Pace | None = None
    ) -> None:
        super().__init__(intake)
        self.scheduler = scheduler
        self.runner = runner
        self.num_steps = 0
        self.num_computed_tokens = 0
        self.num_drawn_tokens = 0
        self._requests: dict[str, Request] = {}
        self._num_guided = 0
        self._flight: _Flight | None = None
        self._set_pace(pace)

    @property
    def engines(self) -> tuple["Engine", ...]:
        """Itself."""
        return (self,)

    @property
    def has_unfinished(self) -> bool:
        """Whether another step would do something."""
        self._abort_abandoned()
        return bool(self._requests)

    @property
    def has_begun(self) -> bool:
        """Whether a step has begun that has not ended."""
        return self._flight is not None

    def take(self, request: Request) -> None:
        """Queue a request that the intake has made."""
        request_id = request.request_id
        if self.holds(request_id):
            raise InvalidValue(
                field="request_id",
                value=request_id,
                limit="is the name of a request that is not finished",
                remedy="Choose another, or leave it out",
            )
        self.runner.open(request_id, request.rule)
        self._requests[request_id] = request
        self._num_guided += request.is_guided
        self.scheduler.add(request.group)

    def holds(self, request_id: str) -> bool:
        """Whether a request of this name is unfinished."""
        return request_id in self._requests

    def abort(self, request_id: str) -> Request:
        """End a request where it is, whatever its state; its pages are free at once."""
        request = self._requests[request_id]
        request.abort()
        self._close(request)
        return request

    def num_cached_tokens(self, request: Request) -> int:
        """Return how much of a prompt is in the prefix cache and would not be computed."""
        return self.scheduler.num_cached_tokens(request.group)

    def step(self, observe: Observe | None = None) -> list[Request]:
        """Make one step; return the requests that gained tokens, finished ones among them."""
        return self.end(observe) if self.begin() else []

    def begin(self) -> bool:
        """Decide a step and start it; return whether there was something to do."""
        assert self._flight is None, "a step has begun already"
        begin_s = self.intake.clock()
        self._abort_abandoned()
        batch = self._guided(self.scheduler.schedule())
        if not batch.rows:
            return False
        with self._failing(batch):
            self.runner.start(batch)
        requests = {row.request_id: self._requests[row.request_id] for row in batch.rows}
        self._flight = _Flight(batch, requests, begin_s)
        return True

    def end(self, observe: Observe | None = None) -> list[Request]:
        """Wait for the step that has begun; return the requests that gained tokens."""
        assert self._flight is not None, "no step has begun"
        flight, self._flight = self._flight, None
        with self._failing(flight.batch):
            results = self.runner.finish()
        self._keep_pace(flight)
        if observe is not None:
            observe(flight.batch, self.scheduler.usage)
        return self._commit(flight, results)

    def _keep_pace(self, flight: _Flight) -> None:
        """Learn from a step how many tokens of prompts the next one has time for."""
        num_tokens = num_chunk_tokens(flight.batch)
        if self._pace is not None and num_tokens:
            step_s = self.intake.clock() - flight.begin_s
            self._set_pace(self._pace.after(step_s, num_chunk_tokens=num_tokens))

    def _set_pace(self, pace: Pace | None) -> None:
        self._pace = pace
        if pace is not None:
            self.scheduler.num_chunk_tokens = pace.num_chunk_tokens

    def _guided(self, batch: Batch) -> Batch:
        """Say what rows may draw whose texts must have some form."""
        if not self._num_guided:
            return batch
        rows = (self._requests[row.request_id].guided(row) for row in batch.rows)
        return replace(batch, rows=tuple(rows))

    @contextmanager
    def _failing(self, batch: Batch) -> Iterator[None]:
        """Undo a step that fails."""
        try:
            with allocating(
                field="step",
                value=f"{batch.num_tokens} tokens",
                limit="needs more memory than is free",
                remedy="Lower max_num_batched_tokens, max_num_seqs or kv_memory",
            ):
                yield
        except BaseException:
            # What was scheduled was not computed: no request can go on, no prefix can be trusted.
            for request_id in list(self._requests):
                self.abort(request_id)
            self.scheduler.forget_prefixes()
            raise

    def _commit(self, flight: _Flight, results: Seq[RowResult]) -> list[Request]:
        """Give every request what its rows drew, unless it was aborted meanwhile."""
        now_s = self.intake.clock()
        self.num_steps += 1
        self.num_computed_tokens += flight.batch.num_tokens
        self.num_drawn_tokens += sum(row.num_draws for row in flight.batch.rows)
        by_request: dict[str, list[tuple[Row, RowResult]]] = {}
        for row, result in zip(flight.batch.rows, results, strict=True):
            by_request.setdefault(row.request_id, []).append((row, result))
        advanced = []
        for request_id, rows in by_request.items():
            request = flight.requests[request_id]
            if self._requests.get(request_id) is not request:
                continue
            parents, children = request.advance(rows, now_s)
            if not parents:
                continue
            advanced.append(request)
            if request.is_finished:
                self._close(request)
            else:
                self.scheduler.evolve(request.group, parents, children)
        return advanced

    def _close(self, request: Request) -> None:
        self.scheduler.finish(request.group)
        self.runner.close(request.request_id)
        del self._requests[request.request_id]
        self._num_guided -= request.is_guided
