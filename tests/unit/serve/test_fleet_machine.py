"""A fleet against a machine that adds, steps, aborts and breaks replicas at random.

Which runner answers next is drawn too: every request ends exactly once all the same.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from alpage.errors import OutOfMemory, RankLost
from alpage.serve.params import BeamSearchParams, SamplingParams
from fleet_of_fakes import lost, make_fleet

_KINDS = (
    SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
    SamplingParams(max_tokens=5, n=3),
    SamplingParams(temperature=0, max_tokens=3, logprobs=0),
    BeamSearchParams(beam_width=2, max_tokens=4),
)


class FleetMachine(RuleBasedStateMachine):
    """Requests of every kind, in replicas that answer in any order."""

    is_built = False

    @initialize(num_replicas=st.integers(1, 4), random=st.randoms(use_true_random=False))
    def build(self, num_replicas, random) -> None:
        def wait(signals, _timeout_s):
            return random.sample(list(signals), random.randint(1, len(signals)))

        self.fleet, self.runners = make_fleet(num_replicas, wait=wait)
        self.added = []
        self.num_ends = Counter()
        self.num_cut_off = Counter()
        self.has_failed = False
        self.is_built = True

    @rule(
        params=st.sampled_from(_KINDS),
        prompt=st.lists(st.integers(0, 3), min_size=1, max_size=30),
        priority=st.integers(-1, 1),
    )
    def add(self, params, prompt, priority) -> None:
        self.added.append(self.fleet.add(prompt, params, priority=priority))

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps) -> None:
        for _ in range(num_steps):
            before = self.unfinished
            try:
                advanced = self.fleet.step()
            except (RankLost, OutOfMemory):
                self.has_failed = True
                self.num_cut_off.update(r.request_id for r in before if r.is_finished)
                for runner in self.runners:
                    if isinstance(runner.error, MemoryError):
                        runner.error = None
            else:
                self.num_ends.update(r.request_id for r in advanced if r.is_finished)

    @precondition(lambda self: self.unfinished)
    @rule(place=st.integers(0, 20), is_at_once=st.booleans())
    def abort(self, place, is_at_once) -> None:
        request = self.unfinished[place % len(self.unfinished)]
        if is_at_once:
            assert self.fleet.abort(request.request_id) is request
        else:
            self.fleet.abandon(request.request_id)
            assert self.fleet.has_unfinished == bool(self.unfinished)
        self.num_cut_off[request.request_id] += 1

    @rule(number=st.integers(0, 3), is_lost=st.booleans())
    def fail(self, number, is_lost) -> None:
        if number < len(self.runners):
            self.runners[number].error = lost() if is_lost else MemoryError()

    @property
    def unfinished(self):
        return [request for request in self.added if not request.is_finished]

    @invariant()
    def holds(self) -> None:
        if self.is_built:
            held = [
                sum(engine.holds(request.request_id) for engine in self.fleet.engines)
                for request in self.added
            ]
            assert held == [not request.is_finished for request in self.added]

    def teardown(self) -> None:
        if self.is_built:
            self.drain()

    def drain(self) -> None:
        """Finish everything in a number of steps that the work bounds; leave nothing held."""
        for _ in range(100 * (1 + len(self.added))):
            if self.fleet.has_unfinished:
                self.step(1)
        assert not self.unfinished, "somebody starves"
        assert self.num_ends + self.num_cut_off == Counter(r.request_id for r in self.added)
        if not self.has_failed:
            assert len(self.fleet.engines) == len(self.runners)
        for replica in self.fleet._replicas:
            assert replica.num_queued_tokens == 0
            assert replica.engine.scheduler.memories[0].pool.num_held == 0
            assert not replica.engine.runner.rules


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(deadline=None, stateful_step_count=30)
