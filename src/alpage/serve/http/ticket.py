"""Ticket: what one HTTP request waits for, as the asyncio side sees it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import final

from alpage.serve.http.engine_messages import Ask, Piece
from alpage.serve.http.refusals import Refusal
from alpage.serve.outputs import RequestOutput


@final
class Ticket:
    """Prompts that the engine has or will have, and what came of them so far.

    All methods belong to the asyncio loop.

    Args:
        number: its name to the engine.
        asks: the prompts.
        is_streamed: whether every step is of interest, or the end alone.
        abandon: tells the engine that nobody waits any more.

    Attributes:
        is_submitted: whether the engine was told of it.
        num_losses: engines that were lost which had it.
        is_accepted: whether the engine has all prompts.
        has_begun: whether something has come.
        finished: what came whole.
    """

    def __init__(
        self,
        number: int,
        asks: Sequence[Ask],
        *,
        is_streamed: bool,
        abandon: Callable[["Ticket"], None],
    ) -> None:
        self.number = number
        self.asks = asks
        self.is_streamed = is_streamed
        self.loop = asyncio.get_running_loop()
        self.is_submitted = False
        self.num_losses = 0
        self.is_accepted = False
        self.has_begun = False
        self.finished: list[RequestOutput] = []
        self._abandon = abandon
        self._arrived: list[Piece] = []
        self._error: Refusal | None = None
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        # When patience ends. There is a timer for each time that it may have, not for each wait.
        self._patient_until_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def num_sequences(self) -> int:
        """Continuations that are drawn."""
        return sum(ask.params.num_sequences for ask in self.asks)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come."""
        has_all = len(self.finished) == len(self.asks)
        return has_all or self._error is not None or self._is_closed

    async def accepted(self) -> None:
        """Wait until the engine has all prompts.

        Raises:
            Refusal: one could never finish; the engine has none of them.
        """
        while not self.is_accepted and not self.is_finished:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def take(self, patience_s: float | None = None) -> list[Piece]:
        """Wait for news; return what came since the last call.

        Args:
            patience_s: seconds after which it returns without news; None: it waits.

        Returns:
            Nothing if there was no news in time, or if all has been taken.

        Raises:
            Refusal: nothing more will come.
        """
        if not self._arrived and not self.is_finished:
            if patience_s is not None:
                self._be_patient(patience_s)
            await self._wait()
        arrived, self._arrived = self._arrived, []
        if not arrived and self._error is not None:
            raise self._error
        return arrived

    async def outputs(self) -> list[RequestOutput]:
        """Wait for all that comes of the prompts, and return it in their order.

        Raises:
            Refusal: it is not going to come.
        """
        found: dict[int, RequestOutput] = {}
        while not self.is_finished or self._arrived or self._error is not None:
            for piece in await self.take():
                if piece.output is not None:
                    found[piece.number] = piece.output
        return [found[number] for number in sorted(found)]

    def close(self) -> None:
        """Nobody waits any more: what is unfinished ends where it is."""
        if not self.is_finished:
            self._is_closed = True
            self._abandon(self)
            self._wake()

    # -- what the engine's side says, on the loop ------------------------------------------------

    def accept(self) -> None:
        """The engine has all prompts."""
        self.is_accepted = True
        self._wake()

    def put(self, pieces: Sequence[Piece]) -> None:
        """Something came of them."""
        self.has_begun = True
        self._arrived.extend(pieces)
        self.finished += [piece.output for piece in pieces if piece.output is not None]
        self._wake()

    def begin_again(self) -> None:
        """What came is void, of which nobody was told, and another engine is to be asked."""
        self.is_submitted = self.has_begun = False
        self._arrived.clear()
        self.finished.clear()

    def fail(self, error: Refusal) -> None:
        """Nothing more will come."""
        if not self.is_finished:
            self._error = error
            self._wake()

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.is_finished and self._alarm is not None:
            self._alarm.cancel()

    def _be_patient(self, patience_s: float) -> None:
        self._patient_until_s = self.loop.time() + patience_s
        if self._alarm is None:
            self._alarm = self.loop.call_at(self._patient_until_s, self._ring)

    def _ring(self) -> None:
        if self.loop.time() < self._patient_until_s:
            self._alarm = self.loop.call_at(self._patient_until_s, self._ring)
        else:
            self._alarm = None
            self._wake()
