"""The scheduler against a machine that adds, steps and aborts at random, in too few pages."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from alpage.serve.sequence import Group
from simulated_kv import RandomDraw, Simulation

# Prompts begin like one of these, so that many share a prefix.
_OPENINGS = ((0,) * 12, (0, 1) * 6, (0, 0, 0, 0, 1, 1) * 2)
_SEEDS = st.integers(0, 2**16)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of every kind in a few pages; the simulation checks each step."""

    is_sound = False

    @initialize(
        page_size=st.integers(2, 4),
        num_pages=st.integers(4, 16),
        num_host_pages=st.sampled_from([0, 1, 3, 8]),
        max_num_seqs=st.integers(1, 8),
        spare_budget=st.integers(0, 12),
        swap_s_per_page=st.sampled_from([0.0, 0.0, 2.5, 100.0]),
        has_prefix_cache=st.sampled_from([True, True, True, False]),
        num_homes=st.sampled_from([1, 1, 2, 3]),
    )
    def build(self, max_num_seqs: int, spare_budget: int, **rest) -> None:
        self.simulation = Simulation(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            patience=3,
            **rest,
        )
        self.is_sound = True

    @rule(
        opening=st.sampled_from(_OPENINGS),
        num_opening=st.integers(1, 9),
        ending=st.lists(st.integers(0, 1), max_size=3),
        n=st.integers(1, 4),
        max_new_tokens=st.integers(1, 20),
        priority=st.integers(-1, 2),
        salt=st.sampled_from(["", "", "", "other"]),
        kind=st.sampled_from(["sampling", "sampling", "beams", "scored"]),
    )
    def add(self, opening, num_opening, ending, n, max_new_tokens, priority, salt, kind) -> None:
        simulation = self.simulation
        prompt = (*opening[:num_opening], *ending)
        n = min(n, simulation.max_num_seqs)
        # The longest output that the pages allow: at the limit is where things break.
        while max_new_tokens and not _fits(simulation, len(prompt), max_new_tokens, n):
            max_new_tokens -= 1
        if max_new_tokens:
            simulation.add(
                prompt,
                n=n,
                max_new_tokens=max_new_tokens,
                priority=priority,
                salt=salt,
                is_lockstep=kind == "beams",
                wants_prompt_logprobs=kind == "scored",
            )

    @precondition(lambda self: self.simulation.groups)
    @rule(num_steps=st.integers(1, 8), end_share=st.sampled_from([0.0, 0.02, 0.3]), seed=_SEEDS)
    def step(self, num_steps: int, end_share: float, seed: int) -> None:
        draw = RandomDraw(Random(seed), end_share)
        for _ in range(num_steps):
            self.is_sound = False  # if the step fails, there is nothing to drain
            self.simulation.step(draw)
            self.is_sound = True

    @precondition(lambda self: self.simulation.groups)
    @rule(seed=_SEEDS)
    def step_once(self, seed: int) -> None:
        self.step(1, 0.1, seed)

    @precondition(lambda self: self.simulation.groups)
    @rule(place=st.integers(0, 9), has_reset=st.booleans())
    def abort(self, place: int, has_reset: bool) -> None:
        groups = list(self.simulation.groups)
        self.simulation.finish(groups[place % len(groups)])
        if has_reset:
            self.simulation.scheduler.forget_prefixes()

    @invariant()
    def holds(self) -> None:
        self.simulation.check()

    def teardown(self) -> None:
        if self.is_sound:
            drain(self.simulation)


def drain(simulation: Simulation) -> None:
    """Finish everything in a number of steps that the remaining work bounds; leave nothing held."""
    num_tokens = sum(
        group.num_sequences * (len(group.prompt_tokens) + group.max_new_tokens)
        for group in simulation.groups
    )
    simulation.run(RandomDraw(Random(0), end_share=0.0), max_steps=2 * num_tokens)
    assert all(pool.num_held == 0 for pool in (*simulation.pools, *simulation.hosts))


def _fits(simulation: Simulation, num_prompt_tokens: int, max_new_tokens: int, n: int) -> bool:
    group = Group("", (0, 0), (0,) * num_prompt_tokens, n, max_new_tokens)
    return group.num_pages_at_most(simulation.page_size) <= simulation.num_pages


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(deadline=None, stateful_step_count=50)
