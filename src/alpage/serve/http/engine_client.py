"""Engine client: the asyncio side of an engine: tickets go in, and what comes of them is theirs.

What the engine says comes from another thread, once a step for all tickets, and goes on to the
asyncio loop of each by `call_soon_threadsafe`.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, final

from alpage.errors import AlpageError
from alpage.serve.guide import Guide
from alpage.serve.http.engine_link import EngineLink
from alpage.serve.http.engine_messages import (
    Accepted,
    Ask,
    Check,
    Command,
    Down,
    Drop,
    Event,
    Failed,
    Look,
    Lost,
    News,
    Ready,
    Take,
    Told,
)
from alpage.serve.http.refusals import (
    Refusal,
    draining,
    interrupted,
    invalid,
    lost,
    overloaded,
    restarting,
)
from alpage.serve.http.reports import Report
from alpage.serve.http.ticket import Ticket
from alpage.serve.live import Snapshot

State: TypeAlias = Literal["running", "stalled", "lost", "draining", "restarting"]

_LOG: Final = logging.getLogger(__name__)
_RETRY_AFTER_S: Final = 1
# Engines that a request may lose before it is taken for the reason.
MAX_LOSSES: Final = 2


@final
@dataclass(frozen=True, slots=True)
class _Question:
    """Something asked, by whom, and whether they wait for the next engine."""

    command: Command
    answer: asyncio.Future[Told]
    is_patient: bool


@final
class EngineClient:
    """An engine, to those who wait for it.

    `start` and `stop` bracket its life; all other methods belong to the asyncio loop.

    Args:
        link: to the engine.
        max_open_sequences: continuations that run or wait at a time.
        stall_s: seconds without a step, while there is work, that are too many.
        clock: seconds.

    Attributes:
        num_restarts: engines that came after the first.
    """

    def __init__(
        self,
        link: EngineLink,
        *,
        max_open_sequences: int,
        stall_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = link.limits
        self.num_restarts = 0
        self._link = link
        self._max_open_sequences = max_open_sequences
        self._stall_s = stall_s
        self._clock = clock
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._questions: dict[int, _Question] = {}
        self._num_open = 0
        self._is_draining = False
        # Of the link's thread; the asyncio loop only reads them.
        self._is_up = True
        self._is_lost = False
        self._report = link.report
        # Of all engines that are gone, as they were last seen.
        self._before: Report | None = None
        self._progress_s = clock()

    def start(self) -> None:
        """Begin to listen."""
        self._link.start(self._hear)

    def stop(self) -> None:
        """End the engine; what is unfinished is lost."""
        self._link.stop()
        self._lose(draining())

    @property
    def pid(self) -> int | None:
        """The engine's process, if it has one of its own."""
        return self._link.pid

    @property
    def failure(self) -> AlpageError | None:
        """Why the server has to end that has lost its engine, if it has to."""
        return self._link.failure

    @property
    def state(self) -> State:
        """How it is."""
        if self._is_lost:
            return "lost"
        if self._tickets and self._clock() - self._progress_s > self._stall_s:
            return "stalled"
        if self._is_draining:
            return "draining"
        return "running" if self._is_up else "restarting"

    def open(self, asks: list[Ask], *, is_streamed: bool) -> Ticket:
        """Hand prompts to the engine; those that come while it is started again wait for it.

        Raises:
            Refusal: it takes no more of them, now or ever.
        """
        if self._is_draining:
            raise draining()
        ticket = Ticket(next(self._numbers), asks, is_streamed=is_streamed, abandon=self._abandon)
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
        # It is known first and looked at then, as whoever says that the engine is gone does the
        # reverse: so one of the two sees the other.
        self._tickets[ticket.number] = ticket
        self._num_open += ticket.num_sequences
        if self._is_lost:
            self._forget(ticket)
            raise lost()
        if self._is_up:
            self._submit(ticket)
        return ticket

    async def report(self, patience_s: float) -> Report:
        """Return the engine in numbers; as it was last seen if that does not come in time.

        What was counted goes on over engines, as far as it was seen before each was lost.
        """
        with suppress(TimeoutError, Refusal):
            async with asyncio.timeout(patience_s):
                await self._ask(lambda question: Look(question, "report"))
        return self._report

    async def moment(self) -> Snapshot:
        """Return how the engine is.

        Raises:
            Refusal: it is lost, or has to be started again.
        """
        return _moment(await self._ask(lambda question: Look(question, "moment")))

    async def glance(self) -> Snapshot:
        """Return how the engine is, or was a moment ago; see `moment`."""
        return _moment(await self._ask(lambda question: Look(question, "glance")))

    async def check(self, guide: Guide | None) -> None:
        """Have a form compiled, so that the engine finds it done; None: only what forms need.

        The latter waits for the next engine if it has to be started again.

        Raises:
            Refusal: it cannot be followed, or the engine is lost.
        """
        await self._ask(lambda question: Check(question, guide), is_patient=guide is None)

    def refuse_all(self) -> None:
        """Answer everything that is under way with an error, now."""
        for ticket in tuple(self._tickets.values()):
            self._abandon(ticket)
            _call(ticket.loop, partial(ticket.fail, draining()))
        self._hush(draining())

    def refuse_new(self) -> None:
        """Take no more prompts."""
        self._is_draining = True

    def _submit(self, ticket: Ticket) -> None:
        if ticket.number in self._tickets and not ticket.is_submitted:
            ticket.is_submitted = True
            self._link.send(Take(ticket.number, ticket.asks, ticket.is_streamed))

    def _abandon(self, ticket: Ticket) -> None:
        self._forget(ticket)
        self._link.send(Drop(ticket.number))

    def _forget(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.number, None) is not None:
            self._num_open -= ticket.num_sequences

    def _fail(self, ticket: Ticket, error: Refusal) -> None:
        ticket.fail(error)
        self._forget(ticket)

    async def _ask(self, make: Callable[[int], Command], *, is_patient: bool = False) -> Told:
        if len(self._questions) >= self._max_open_sequences:
            raise overloaded(len(self._questions), _RETRY_AFTER_S)
        number = next(self._numbers)
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        question = _Question(make(number), answer, is_patient)
        # Known first and looked at then, as in `open`.
        self._questions[number] = question
        try:
            if self._is_lost:
                raise lost()
            if self._is_up:
                self._link.send(question.command)
            elif not is_patient:
                raise restarting()
            told = await answer
        finally:
            del self._questions[number]
        if told.refusal is not None:
            raise told.refusal.refusal
        return told

    # -- the link's threads ------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        match event:
            case News():
                self._progress_s = self._clock()
                self._pass_on(event)
            case Accepted(number):
                self._to_ticket(number, Ticket.accept)
            case Failed(number, plain):
                self._to_ticket(number, partial(self._fail, error=plain.refusal))
            case Told():
                self._reply(event)
            case Down():
                self._is_up = False
                self._before = self._report = self._report.idle()
                self._hush(restarting(), spares_patient=True)
                self._to_all(self._begin_again)
            case Ready():
                self._welcome(event.report)
            case Lost():
                self._is_up, self._is_lost = False, True
                self._report = self._report.idle()
                self._lose(lost())
            case _:
                self._progress_s = self._clock()

    def _welcome(self, report: Report) -> None:
        """Hand what waits to another engine."""
        self.num_restarts += 1
        self._progress_s = self._clock()
        self._see(report)
        self._is_up = True
        for question in tuple(self._questions.values()):
            if question.is_patient:
                self._link.send(question.command)
        self._to_all(self._submit)

    def _see(self, report: Report) -> None:
        self._report = report if self._before is None else report.after(self._before)

    def _pass_on(self, news: News) -> None:
        """Say what is new, once for all tickets of an asyncio loop."""
        found = [(self._tickets.get(number), pieces) for number, pieces in news.pieces.items()]
        known = [(ticket, pieces) for ticket, pieces in found if ticket is not None]

        def put(loop: asyncio.AbstractEventLoop) -> None:
            for ticket, pieces in known:
                if ticket.loop is loop:
                    ticket.put(pieces)
                    if ticket.is_finished:
                        self._forget(ticket)

        for loop in {ticket.loop for ticket, _ in known}:
            _call(loop, partial(put, loop))

    def _begin_again(self, ticket: Ticket) -> None:
        """Answer a ticket whose engine is gone, unless the next engine can."""
        if not ticket.is_submitted:
            return
        ticket.num_losses += 1
        if ticket.num_losses >= MAX_LOSSES:
            self._fail(ticket, interrupted(is_last=True))
        elif ticket.is_streamed and ticket.has_begun:
            self._fail(ticket, interrupted(is_last=False))
        else:
            ticket.begin_again()

    def _lose(self, error: Refusal) -> None:
        """Answer everybody: nothing more comes."""
        self._hush(error)
        self._to_all(partial(self._fail, error=error))

    def _hush(self, error: Refusal, *, spares_patient: bool = False) -> None:
        """Answer whoever asked something."""
        for number, question in tuple(self._questions.items()):
            if not (spares_patient and question.is_patient):
                self._reply(Told(number, refusal=error.plain))

    def _reply(self, told: Told) -> None:
        if told.report is not None:
            self._see(told.report)
        question = self._questions.get(told.question)
        if question is not None:
            # Whoever asked may have gone.
            answer = question.answer
            _call(answer.get_loop(), lambda: None if answer.done() else answer.set_result(told))

    def _to_all(self, word: Callable[[Ticket], None]) -> None:
        for number in tuple(self._tickets):
            self._to_ticket(number, word)

    def _to_ticket(self, number: int, word: Callable[[Ticket], None]) -> None:
        ticket = self._tickets.get(number)
        if ticket is not None:
            _call(ticket.loop, partial(word, ticket))


def _moment(told: Told) -> Snapshot:
    assert told.moment is not None
    return told.moment


def _call(loop: asyncio.AbstractEventLoop, word: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(word)
    except RuntimeError:
        _LOG.debug("the asyncio loop is gone, and with it who waited")
