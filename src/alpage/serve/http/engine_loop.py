"""Engine loop: the one thread that has the engine, and how the asyncio loop talks with it.

Words go in by a queue and come out by `call_soon_threadsafe`, once a step for all requests. The
thread sleeps while there is nothing to do, and survives whatever a step raises.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Final, Literal, TypeAlias, TypeVar, final

from alpage.errors import AlpageError, RankLost
from alpage.serve.http.refusals import (
    Refusal,
    draining,
    failed,
    invalid,
    lost,
    overloaded,
    refusal_of,
)
from alpage.serve.http.tallies import Reason, Tallies
from alpage.serve.http.ticket import Ask, Piece, Ticket
from alpage.serve.kv_memory import KvUsage
from alpage.serve.request import Request
from alpage.serve.serves import Serves

_T = TypeVar("_T")
State: TypeAlias = Literal["running", "stalled", "lost", "draining"]

_LOG: Final = logging.getLogger(__name__)
_RETRY_AFTER_S: Final = 1


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A prompt that the engine has, and who waits for it."""

    request: Request
    ticket: Ticket
    number: int


@final
class EngineLoop:
    """An engine that makes its steps in a thread of its own.

    `start` and `stop` bracket its life; all other methods belong to the asyncio loop.

    Args:
        engine: what makes the steps; nobody else may touch it meanwhile.
        max_open_sequences: continuations that run or wait at a time.
        stall_s: seconds without a step, while there is work, that are too many.
        clock: seconds.
    """

    def __init__(
        self,
        engine: Serves,
        *,
        max_open_sequences: int,
        stall_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = engine.limits
        self.tallies = Tallies(engine)
        self._engine = engine
        self._max_open_sequences = max_open_sequences
        self._stall_s = stall_s
        self._clock = clock
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Of the asyncio loop:
        self._tickets: set[Ticket] = set()
        self._num_open = 0
        self._is_draining = False
        # Of the thread; the loop only reads the last two.
        self._entries: dict[str, _Entry] = {}
        self._news: dict[Ticket, list[Piece]] = {}
        self._is_stopping = False
        self._is_lost = False
        self._progress_s = clock()

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is being made; what is unfinished is lost."""
        self._inbox.put(self._stop)
        self._thread.join()

    @property
    def state(self) -> State:
        """How it is."""
        if self._is_lost:
            return "lost"
        if self._tickets and self._clock() - self._progress_s > self._stall_s:
            return "stalled"
        return "draining" if self._is_draining else "running"

    def open(self, asks: list[Ask], *, is_streamed: bool) -> Ticket:
        """Hand prompts to the engine.

        Raises:
            Refusal: it takes no more of them, now or ever.
        """
        if self._is_lost:
            raise lost()
        if self._is_draining:
            raise draining()
        ticket = Ticket(asks, is_streamed=is_streamed, abandon=self._abandon)
        if ticket.num_sequences > self._max_open_sequences:
            raise invalid(
                f"{ticket.num_sequences} continuations were asked for at once; there may be "
                f"{self._max_open_sequences}. Send fewer prompts, or lower n.",
                "n" if len(asks) == 1 else "prompt",
            )
        if self._num_open + ticket.num_sequences > self._max_open_sequences:
            raise overloaded(self._num_open, _RETRY_AFTER_S)
        if not self._tickets:
            self._progress_s = self._clock()
        self._tickets.add(ticket)
        self._num_open += ticket.num_sequences
        self._inbox.put(partial(self._take, ticket))
        return ticket

    async def ask(self, question: Callable[[Serves], _T]) -> _T:
        """Return what a question that changes nothing finds out of the engine, between two steps.

        Raises:
            Refusal: the engine is lost.
        """
        if self._is_lost:
            raise lost()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()
        self._inbox.put(partial(self._answer, question, answer, loop))
        return await answer

    async def usage(self, patience_s: float) -> KvUsage | None:
        """Return what is in KV memory between two steps; None if that does not come in time."""

        def look(engine: Serves) -> KvUsage:
            return KvUsage.total([each.scheduler.usage() for each in engine.engines])

        try:
            async with asyncio.timeout(patience_s):
                return await self.ask(look)
        except (TimeoutError, Refusal):
            return None

    def refuse_all(self) -> None:
        """Answer everything that is under way with an error, now."""
        for ticket in tuple(self._tickets):
            self._abandon(ticket)
            ticket.fail(draining())

    def refuse_new(self) -> None:
        """Take no more prompts."""
        self._is_draining = True

    def _abandon(self, ticket: Ticket) -> None:
        self._forget(ticket)
        self._inbox.put(partial(self._drop, ticket, "abort"))

    def _forget(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._num_open -= ticket.num_sequences

    def _put(self, news: Iterable[tuple[Ticket, list[Piece]]]) -> None:
        for ticket, pieces in news:
            ticket.put(pieces)
            if ticket.is_finished:
                self._forget(ticket)

    def _fail(self, tickets: Iterable[Ticket], error: Refusal) -> None:
        for ticket in tickets:
            ticket.fail(error)
            self._forget(ticket)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._listen(is_patient=not self._entries)
                if self._entries and not self._is_stopping:
                    self._step()
            except Exception:  # noqa: BLE001 - whoever waits is answered, whatever it is
                _LOG.exception("the engine is lost")
                self._is_lost = True
                self._end(self._waiting(), lost())
        self._end(self._waiting(), draining())

    def _listen(self, *, is_patient: bool) -> None:
        """Do what was said, waiting for the first word if there is nothing else to do."""
        while is_patient or not self._inbox.empty():
            is_patient = False
            self._inbox.get()()

    def _stop(self) -> None:
        self._is_stopping = True

    def _take(self, ticket: Ticket) -> None:
        """Take all prompts of a ticket, or none."""
        if self._is_lost:
            self._end({ticket}, lost())
            return
        requests: list[Request] = []
        try:
            for ask in ticket.asks:
                request = self._engine.intake.request(
                    ask.prompt_tokens,
                    ask.params,
                    prompt=ask.prompt,
                    request_id=None,
                    priority=ask.priority,
                    salt=ask.salt,
                )
                requests.append(request)
        except AlpageError as error:
            self._end({ticket}, refusal_of(error))
            return
        for number, request in enumerate(requests):
            self._engine.take(request)
            self._entries[request.request_id] = _Entry(request, ticket, number)
        self._say(ticket, ticket.accept)

    def _answer(
        self,
        question: Callable[[Serves], _T],
        answer: asyncio.Future[_T],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Answer whoever asked; a question that fails is no harm to the engine."""
        try:
            tell = partial(answer.set_result, question(self._engine))
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked
            tell = partial(answer.set_exception, error)
        # Whoever asked may have gone.
        self._call(loop, lambda: None if answer.done() else tell())

    def _drop(self, ticket: Ticket, reason: Reason) -> None:
        """Abort what is left of a ticket; its pages are free at once."""
        for request_id, entry in tuple(self._entries.items()):
            if entry.ticket is ticket:
                del self._entries[request_id]
                self.tallies.ended(request_id, reason)
                if not self._is_lost and self._engine.holds(request_id):
                    self._engine.abort(request_id)

    def _step(self) -> None:
        num_engines, begin_s = len(self._engine.engines), self._clock()
        try:
            advanced = self._engine.step(self.tallies.computed)
        except Exception as error:  # noqa: BLE001 - it is the step's, and the next may be well
            _LOG.exception("a step failed")
            # A fleet parts with a replica that is lost; the last one stays, and is of no use.
            is_lost = isinstance(error, RankLost)
            hit = self._hit()
            self._is_lost = is_lost and len(self._engine.engines) == num_engines
            self._end(hit, lost() if is_lost else failed())
            return
        self._progress_s = self._clock()
        self.tallies.stepped(begin_s, self._progress_s)
        for request in advanced:
            self._note(request)
        self._tell()

    def _note(self, request: Request) -> None:
        """Keep what a request gained, if it is of interest."""
        self.tallies.advanced(request)
        entry = self._entries[request.request_id]
        is_finished = request.is_finished
        if not is_finished and not entry.ticket.is_streamed:
            return
        is_first = len(request.token_times_s) == 1
        piece = Piece(
            number=entry.number,
            chunks=request.take_chunks() if entry.ticket.is_streamed else (),
            prompt_logprobs=request.prompt_logprobs if is_first else None,
            output=request.output() if is_finished else None,
        )
        if piece.output is not None:
            self.tallies.finished(piece.output)
        self._news.setdefault(entry.ticket, []).append(piece)
        if is_finished:
            del self._entries[request.request_id]

    def _tell(self) -> None:
        """Say what is new, once for all requests of a loop."""
        news, self._news = self._news, {}
        for loop in {ticket.loop for ticket in news}:
            own = [(ticket, pieces) for ticket, pieces in news.items() if ticket.loop is loop]
            self._call(loop, partial(self._put, own))

    def _hit(self) -> set[Ticket]:
        """Return the tickets that a failed step has ended: all of them, if the engine kept all."""
        ended = {e.ticket for i, e in self._entries.items() if not self._engine.holds(i)}
        return ended or self._waiting()

    def _waiting(self) -> set[Ticket]:
        return {entry.ticket for entry in self._entries.values()}

    def _end(self, tickets: set[Ticket], error: Refusal) -> None:
        """Answer tickets with an error, and only then forget them, which may fail in its turn."""
        for ticket in tickets:
            self._say(ticket, partial(self._fail, [ticket], error))
        for ticket in tickets:
            self._drop(ticket, "error")

    def _say(self, ticket: Ticket, word: Callable[[], None]) -> None:
        self._call(ticket.loop, word)

    def _call(self, loop: asyncio.AbstractEventLoop, word: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(word)
        except RuntimeError:
            _LOG.debug("the asyncio loop is gone, and with it who waited")
