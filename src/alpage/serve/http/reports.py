"""Reports: what an engine says of itself when it is asked, between two steps."""

from dataclasses import dataclass, replace
from typing import Final, final

from alpage.serve.http.tallies import Counts, Tallies
from alpage.serve.kv_memory import KvUsage
from alpage.serve.live import Snapshot, look
from alpage.serve.serves import Serves

LIVE_PERIOD_S: Final = 0.25
_NOTHING: Final = KvUsage(
    num_held_pages=0, num_table_entries=0, num_filled_slots=0, num_held_slots=0
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An engine in numbers.

    Attributes:
        counts: of its steps and requests.
        num_running: requests that were let in and are not finished.
        num_waiting: requests that were not let in yet.
        num_preemptions: sequences that gave up their pages.
        num_swap_preemptions: those of them whose pages went to the host.
        num_pages: KV pages that there are.
        usage: what is in them.
    """

    counts: Counts
    num_running: int
    num_waiting: int
    num_preemptions: int
    num_swap_preemptions: int
    num_pages: int
    usage: KvUsage

    @property
    def waste(self) -> float:
        """Share of the places in held pages that hold no token."""
        usage = self.usage
        return 1 - usage.num_filled_slots / usage.num_held_slots if usage.num_held_slots else 0.0

    def idle(self) -> "Report":
        """Return the same with nothing under way."""
        return replace(self, num_running=0, num_waiting=0, usage=_NOTHING)

    def after(self, before: "Report") -> "Report":
        """Return the same with all that engines before this one have counted."""
        return replace(
            self,
            counts=before.counts + self.counts,
            num_preemptions=before.num_preemptions + self.num_preemptions,
            num_swap_preemptions=before.num_swap_preemptions + self.num_swap_preemptions,
        )


@final
class Reporter:
    """Looks at an engine, in the engine's thread.

    Args:
        engine: that is looked at.
        tallies: what was counted of it.
    """

    def __init__(self, engine: Serves, tallies: Tallies) -> None:
        self._engine = engine
        self._tallies = tallies
        self._latest: Snapshot | None = None

    def report(self) -> Report:
        """Return the engine in numbers."""
        schedulers = [engine.scheduler for engine in self._engine.engines]
        return Report(
            counts=self._tallies.counts,
            num_running=sum(each.num_running for each in schedulers),
            num_waiting=sum(each.num_waiting for each in schedulers),
            num_preemptions=sum(each.num_preemptions for each in schedulers),
            num_swap_preemptions=sum(each.num_swap_preemptions for each in schedulers),
            num_pages=sum(memory.pool.num_pages for each in schedulers for memory in each.memories),
            usage=KvUsage.total([each.usage() for each in schedulers]),
        )

    def moment(self) -> Snapshot:
        """Return how the engine is now."""
        self._latest = look(self._engine.engines, self._engine.intake.clock())
        return self._latest

    def glance(self) -> Snapshot:
        """Return how it is, or was a moment ago: once for all who look at the same time."""
        now_s = self._engine.intake.clock()
        if self._latest is not None and now_s - self._latest.at_s < LIVE_PERIOD_S / 2:
            return self._latest
        return self.moment()
