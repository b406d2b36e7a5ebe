"""Engine core: an engine and its half of the talk with a service: commands in, events out.

One thread has the engine; it sleeps while there is nothing to do, and survives what a step raises.
Forms that texts must have are compiled beside it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, final

from alpage.errors import AlpageError, InvalidValue, RankLost
from alpage.serve.http.engine_messages import (
    Accepted,
    Beat,
    Check,
    Command,
    Drop,
    Event,
    Failed,
    Look,
    News,
    Piece,
    Take,
    Told,
)
from alpage.serve.http.refusals import Refusal, failed, invalid, lost, refusal_of
from alpage.serve.http.reports import Report, Reporter
from alpage.serve.http.tallies import Reason, Tallies
from alpage.serve.request import Request
from alpage.serve.serves import Serves

_LOG: Final = logging.getLogger(__name__)
# Compiling takes milliseconds. What takes longer is not waited for, and ends by itself.
_NUM_COMPILERS: Final = 2
_BEAT_S: Final = 0.1


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A prompt that the engine has, and whose it is."""

    request: Request
    ticket: int
    number: int
    is_streamed: bool


@final
class EngineCore:
    """An engine that does what it is told, and tells what comes of it.

    `hear` and `stop` may be called by any thread; the thread of `run` has the engine.

    Args:
        engine: what makes the steps; nobody else may touch it meanwhile.
        tell: takes the events, from several threads.
        clock: seconds.
    """

    def __init__(
        self,
        engine: Serves,
        tell: Callable[[Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tallies = Tallies(engine)
        self._engine = engine
        self._tell = tell
        self._clock = clock
        self._reporter = Reporter(engine, self.tallies)
        self._inbox: SimpleQueue[Command | None] = SimpleQueue()
        self._compilers = ThreadPoolExecutor(_NUM_COMPILERS, thread_name_prefix="guide")
        self._entries: dict[str, _Entry] = {}
        self._news: dict[int, list[Piece]] = {}
        self._is_stopping = False
        self._told_s = clock()

    def report(self) -> Report:
        """Return the engine in numbers, before it runs."""
        return self._reporter.report()

    def hear(self, command: Command) -> None:
        """Do what is said, once a step is not under way."""
        if isinstance(command, Check):
            self._compilers.submit(self._check, command)
        else:
            self._inbox.put(command)

    def stop(self) -> None:
        """End after the step that is being made; nobody is told what is unfinished."""
        self._inbox.put(None)

    def run(self) -> bool:
        """Make steps until told to stop; return whether that is why it ended."""
        try:
            while True:
                self._listen(is_patient=not self._entries)
                if self._is_stopping:
                    break
                if self._entries:
                    self._step()
            self._drop(self._tickets(), "error")
        except Exception:  # noqa: BLE001 - whoever waits is told, whatever it is
            _LOG.exception("the engine is lost")
            for request_id in self._entries:
                self.tallies.ended(request_id, "error")
            return False
        else:
            return True
        finally:
            self._compilers.shutdown(wait=False, cancel_futures=True)

    def _listen(self, *, is_patient: bool) -> None:
        """Do what was said, waiting for the first word if there is nothing else to do."""
        while is_patient or not self._inbox.empty():
            is_patient = False
            match self._inbox.get():
                case Take() as take:
                    self._take(take)
                case Drop(ticket):
                    self._drop({ticket}, "abort")
                case Look() as question:
                    self._answer(question)
                case _:
                    self._is_stopping = True

    def _take(self, take: Take) -> None:
        """Take all prompts of a ticket, or none."""
        if take.ticket in self._tickets():
            return
        requests: list[Request] = []
        try:
            for ask in take.asks:
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
            self._tell(Failed(take.ticket, refusal_of(error).plain))
            return
        for number, request in enumerate(requests):
            self._engine.take(request)
            entry = _Entry(request, take.ticket, number, take.is_streamed)
            self._entries[request.request_id] = entry
        self._tell(Accepted(take.ticket))

    def _answer(self, asked: Look) -> None:
        """Answer whoever asked; a look that fails is no harm to the engine."""
        try:
            match asked.what:
                case "report":
                    told = Told(asked.question, report=self._reporter.report())
                case "moment":
                    told = Told(asked.question, moment=self._reporter.moment())
                case "glance":
                    told = Told(asked.question, moment=self._reporter.glance())
        except Exception:  # noqa: BLE001 - it is the asker's
            _LOG.exception("a look at the engine failed")
            told = Told(asked.question, refusal=failed().plain)
        self._tell(told)

    def _check(self, asked: Check) -> None:
        """Compile a form, beside the steps."""
        grammars = self._engine.intake.grammars
        try:
            assert grammars is not None, "without a tokenizer nobody asks"
            grammars.prepare()
            if asked.guide is not None:
                grammars.matcher(asked.guide)
            told = Told(asked.question)
        except InvalidValue as error:
            told = Told(asked.question, refusal=invalid(str(error), None).plain)
        except Exception:  # noqa: BLE001 - it is the asker's
            _LOG.exception("a form could not be compiled")
            told = Told(asked.question, refusal=failed().plain)
        self._tell(told)

    def _drop(self, tickets: set[int], reason: Reason) -> None:
        """Abort what is left of tickets; their pages are free at once."""
        for request_id, entry in tuple(self._entries.items()):
            if entry.ticket in tickets:
                del self._entries[request_id]
                self.tallies.ended(request_id, reason)
                if self._engine.holds(request_id):
                    self._engine.abort(request_id)

    def _step(self) -> None:
        num_engines, begin_s = len(self._engine.engines), self._clock()
        try:
            advanced = self._engine.step(self.tallies.computed)
        except Exception as error:
            is_lost = isinstance(error, RankLost)
            # A fleet parts with a replica that is lost; the last one stays, and is of no use.
            if is_lost and len(self._engine.engines) == num_engines:
                raise
            # It is the step's, and the next may be well.
            _LOG.exception("a step failed")
            self._end(self._hit(), lost() if is_lost else failed())
            return
        end_s = self._clock()
        self.tallies.stepped(begin_s, end_s)
        for request in advanced:
            self._note(request)
        if self._news:
            news, self._news = self._news, {}
            self._tell(News(news))
            self._told_s = end_s
        elif end_s - self._told_s > _BEAT_S:
            self._tell(Beat())
            self._told_s = end_s

    def _note(self, request: Request) -> None:
        """Keep what a request gained, if it is of interest."""
        self.tallies.advanced(request)
        entry = self._entries[request.request_id]
        is_finished = request.is_finished
        if not is_finished and not entry.is_streamed:
            return
        is_first = len(request.token_times_s) == 1
        piece = Piece(
            number=entry.number,
            chunks=request.take_chunks() if entry.is_streamed else (),
            prompt_logprobs=request.prompt_logprobs if is_first else None,
            output=request.output() if is_finished else None,
        )
        if piece.output is not None:
            self.tallies.finished(piece.output)
        self._news.setdefault(entry.ticket, []).append(piece)
        if is_finished:
            del self._entries[request.request_id]

    def _hit(self) -> set[int]:
        """Return the tickets that a failed step has ended: all of them, if the engine kept all."""
        ended = {e.ticket for i, e in self._entries.items() if not self._engine.holds(i)}
        return ended or self._tickets()

    def _tickets(self) -> set[int]:
        return {entry.ticket for entry in self._entries.values()}

    def _end(self, tickets: Iterable[int], error: Refusal) -> None:
        """Answer tickets with an error, and only then forget them, which may fail in its turn."""
        tickets = set(tickets)
        for ticket in tickets:
            self._tell(Failed(ticket, error.plain))
        self._drop(tickets, "error")
