"""Simulated KV: a runner whose pages hold meanings, not tensors, and the engine's loop around it.

What a page holds at a token's place is the salt and all tokens up to that one: exactly what the
keys and values there depend on. So a page that is shared, copied, swapped or written wrongly
cannot look right. The runner knows only what batches tell it; it is compared with the true tokens,
which are kept here apart from the scheduler's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import final

from alpage.serve.batch import Batch, Move, Row
from alpage.serve.kv_memory import KvMemory, PreemptionCost
from alpage.serve.pages import PagePool
from alpage.serve.scheduler import PATIENCE, Scheduler
from alpage.serve.sequence import Child, Group, Sequence

# The salt and the tokens up to and with a place; None where nothing was ever written.
Content = tuple[str, tuple[int, ...]] | None
Pages = list[list[Content]]
# Draws the next token of a sequence, given its tokens; None ends it.
Draw = Callable[[tuple[int, ...]], int | None]


@final
class SimulatedRunner:
    """Does what a batch says, in its order, and asserts that every row could attend rightly."""

    def __init__(self, num_pages: int, num_host_pages: int, page_size: int) -> None:
        self.device: Pages = [[None] * page_size for _ in range(num_pages)]
        self.host: Pages = [[None] * page_size for _ in range(num_host_pages)]
        self._page_size = page_size
        self._tables: dict[int, list[int]] = {}
        self._tokens: dict[int, list[int]] = {}

    def run(self, batch: Batch, truth: dict[int, tuple[str, int, tuple[int, ...]]]) -> None:
        """Make a step; `truth` gives each slot's salt, index and tokens."""
        for fork in batch.forked:
            self._tables[fork.slot] = list(self._tables[fork.source])
            self._tokens[fork.slot] = list(self._tokens[fork.source])
        for opened in batch.opened:
            self._tables[opened.slot] = []
            self._tokens[opened.slot] = list(opened.tokens)
        _move(batch.swapped_out, self.device, self.host)
        _move(batch.swapped_in, self.host, self.device)
        _move(batch.copied, self.device, self.device)
        written: set[tuple[int, int]] = set()
        for row in batch.rows:
            salt, index, tokens = truth[row.slot]
            assert row.index == index, "the runner would draw from another's stream"
            self._learn(row)
            assert self._tokens[row.slot][: row.context] == list(tokens[: row.context])
            for position in range(row.start, row.context):
                page, place = self._cell(row.slot, position)
                assert (page, place) not in written, f"page {page} is written twice at {place}"
                written.add((page, place))
                self.device[page][place] = (salt, tokens[: position + 1])
        for row in batch.rows:
            salt, _, tokens = truth[row.slot]
            for position in range(row.context):
                page, place = self._cell(row.slot, position)
                content = self.device[page][place]
                assert content == (salt, tokens[: position + 1]), (
                    f"{row}: position {position} in page {page} is {content}"
                )

    def holds(self, pages: Pages, table: Iterable[int], expected: Iterable[Content]) -> bool:
        """Whether pages hold what is expected, place by place."""
        cells = (content for page in table for content in pages[page])
        return all(cell == want for want, cell in zip(expected, cells, strict=False))

    def _learn(self, row: Row) -> None:
        table, tokens = self._tables[row.slot], self._tokens[row.slot]
        assert row.tokens, "a row computes something"
        assert row.start <= len(tokens), "tokens that the runner was never told"
        assert row.page_start <= len(table), "pages that the runner was never told"
        table[row.page_start : row.page_start + len(row.pages)] = row.pages
        tokens[row.start : row.context] = row.tokens

    def _cell(self, slot: int, position: int) -> tuple[int, int]:
        entry, place = divmod(position, self._page_size)
        return self._tables[slot][entry], place


def _move(moves: tuple[Move, ...], sources: Pages, targets: Pages) -> None:
    assert len({move.target for move in moves}) == len(moves), f"two moves to one page: {moves}"
    contents = [list(sources[move.source]) for move in moves]
    for move, content in zip(moves, contents, strict=True):
        targets[move.target] = content


def counting(tokens: tuple[int, ...]) -> int:
    """Draw what no other draw gives: nothing is shared by chance, nothing ends early."""
    return 1000 + len(tokens)


@final
@dataclass(slots=True)
class RandomDraw:
    """Draw from few tokens, so that continuations often agree, and end now and then."""

    random: Random
    end_share: float = 0.1

    def __call__(self, tokens: tuple[int, ...]) -> int | None:
        return None if self.random.random() < self.end_share else self.random.randrange(2)


@final
@dataclass(slots=True, kw_only=True)
class Simulation:
    """The engine's loop without a model: schedule, run, commit; all is checked on the way."""

    num_pages: int
    page_size: int = 4
    num_host_pages: int = 0
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    swap_s_per_page: float = 1.0
    recompute_s_per_token: float = 1.0
    has_prefix_cache: bool = True
    patience: int = PATIENCE
    groups: dict[Group, dict[Sequence, tuple[int, ...]]] = field(default_factory=dict)
    texts: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)
    scored: dict[Group, set[int]] = field(default_factory=dict)
    num_arrivals: int = 0
    num_steps: int = 0
    num_swapped_in: int = 0
    num_homes: int = 1
    pools: list[PagePool] = field(init=False)
    hosts: list[PagePool] = field(init=False)
    scheduler: Scheduler = field(init=False)
    runner: SimulatedRunner = field(init=False)

    def __post_init__(self) -> None:
        self.pools = [
            PagePool(
                self.num_pages,
                self.page_size,
                first=home * self.num_pages,
                key=b"key",
                has_prefix_cache=self.has_prefix_cache,
            )
            for home in range(self.num_homes)
        ]
        self.hosts = [
            PagePool(
                self.num_host_pages,
                self.page_size,
                first=home * self.num_host_pages,
                has_prefix_cache=False,
            )
            for home in range(self.num_homes)
        ]
        cost = PreemptionCost(
            swap_s_per_page=self.swap_s_per_page, recompute_s_per_token=self.recompute_s_per_token
        )
        self.scheduler = Scheduler(
            [KvMemory(pool, host, cost) for pool, host in zip(self.pools, self.hosts, strict=True)],
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )
        self.runner = SimulatedRunner(
            self.num_homes * self.num_pages, self.num_homes * self.num_host_pages, self.page_size
        )

    @property
    def pool(self) -> PagePool:
        """The pages of the first home."""
        return self.pools[0]

    @property
    def host(self) -> PagePool:
        """The host pages of the first home."""
        return self.hosts[0]

    # -- the engine's loop -------------------------------------------------------------------------

    def add(self, prompt: Iterable[int], *, n: int = 1, priority: int = 0, **rest: object) -> Group:
        """Queue a request; `rest` are fields of its group."""
        arrival = self.num_arrivals
        group = Group(
            request_id=str(arrival),
            key=(arrival + self.patience * priority, arrival),
            prompt_tokens=tuple(prompt),
            num_sequences=n,
            **{"max_new_tokens": 4, **rest},
        )
        assert group.num_pages_at_most(self.page_size) <= self.num_pages, "refused by the engine"
        self.num_arrivals += 1
        self.groups[group] = {}
        self.scored[group] = set()
        self.scheduler.add(group)
        return group

    def step(self, draw: Draw = counting) -> Batch:
        """Make one step and check all there is to check."""
        before = _Before(self)
        batch = self.scheduler.schedule()
        self.num_steps += 1
        self.num_swapped_in += len(batch.swapped_in)
        before.check(batch)
        self._adopt_opened(batch)
        rows = {row.slot: row for row in batch.rows}
        assert len(rows) == len(batch.rows), "a sequence has one row"
        live = {s.slot: (group, s) for group in self.groups for s in group.sequences}
        assert rows.keys() <= live.keys()
        truth = {
            slot: (group.salt, s.index, self.groups[group][s]) for slot, (group, s) in live.items()
        }
        self.runner.run(batch, truth)
        for group in list(self.groups):
            taking = [(s, rows[s.slot]) for s in group.sequences if s.slot in rows]
            if taking:
                self._score(group, [row for _, row in taking])
                self._check_draws(group, taking)
                parents = [s for s, row in taking if row.num_draws]
                self._commit(group, parents, draw)
        self.check()
        return batch

    def run(self, draw: Draw = counting, *, max_steps: int = 10_000) -> list[Batch]:
        """Make steps until nothing is left to do."""
        batches = []
        while self.groups:
            assert len(batches) < max_steps, "somebody starves"
            batches.append(self.step(draw))
        assert not self.scheduler.schedule().rows
        return batches

    def finish(self, group: Group) -> None:
        """End a request, wherever it is."""
        for tokens in self.groups.pop(group).values():
            self.texts.add((group.salt, tokens))
        self.scheduler.finish(group)

    def _adopt_opened(self, batch: Batch) -> None:
        by_name = {group.request_id: group for group in self.groups}
        for opened in batch.opened:
            group = by_name[opened.request_id]
            assert opened.slot == group.leader.slot
            assert opened.tokens == group.prompt_tokens
            self.groups[group][group.leader] = group.prompt_tokens

    def _score(self, group: Group, rows: list[Row]) -> None:
        for row in rows:
            for place, target in enumerate(row.prompt_targets):
                self.scored[group].add(row.start + place + 1)
                assert group.prompt_tokens[row.start + place + 1] == target

    def _check_draws(self, group: Group, taking: list[tuple[Sequence, Row]]) -> None:
        truth = self.groups[group]
        for sequence, row in taking:
            is_complete = row.context == len(truth[sequence])
            is_first = not group.has_forked and not group.is_lockstep
            assert row.num_draws == is_complete * (group.num_sequences if is_first else 1)
        if group.is_lockstep and any(row.num_draws for _, row in taking):
            assert len(taking) == len(group.sequences), "beams take their steps together"
            assert len({row.context for _, row in taking}) == 1
        if group.wants_prompt_logprobs and group.has_forked:
            assert self.scored[group] == set(range(1, len(group.prompt_tokens)))

    def _commit(self, group: Group, parents: list[Sequence], draw: Draw) -> None:
        if not parents:
            return
        if group.wants_prompt_logprobs:
            assert self.scored[group] == set(range(1, len(group.prompt_tokens)))
        children = (self._beams if group.is_lockstep else self._samples)(group, parents, draw)
        truth = self.groups[group]
        if not children and set(parents) == set(group.sequences):
            self.finish(group)
            return
        grown = [(*truth[child.parent], child.token) for child in children]
        for parent in parents:
            self.texts.add((group.salt, truth.pop(parent)))
        evolved = self.scheduler.evolve(group, parents, children)
        assert [s.index for s in evolved] == [child.index for child in children]
        assert [tuple(s.tokens) for s in evolved] == grown
        truth.update(zip(evolved, grown, strict=True))
        assert truth.keys() == set(group.sequences)

    def _samples(self, group: Group, parents: list[Sequence], draw: Draw) -> list[Child]:
        children = []
        for parent in parents:
            tokens = self.groups[group][parent]
            is_last = len(tokens) + 1 == len(group.prompt_tokens) + group.max_new_tokens
            for number in range(1 if group.has_forked else group.num_sequences):
                token = draw(tokens)
                if token is not None and not is_last:
                    children.append(Child(parent, token, parent.index + number))
        return children

    def _beams(self, group: Group, parents: list[Sequence], draw: Draw) -> list[Child]:
        """Extend the beams until there are enough: some die, some fork."""
        num_tokens = len(self.groups[group][parents[0]])
        if num_tokens + 1 == len(group.prompt_tokens) + group.max_new_tokens:
            return []
        extended: list[tuple[Sequence, int]] = []
        for number in range(4 * group.num_sequences):
            parent = parents[(number * 7 + num_tokens) % len(parents)]
            token = draw(self.groups[group][parent])
            if token is not None and len(extended) < group.num_sequences:
                extended.append((parent, token))
        return [Child(parent, token, index) for index, (parent, token) in enumerate(extended)]

    # -- what must always hold ---------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        sequences = [s for group in self.groups for s in group.sequences]
        for home, (pool, host) in enumerate(zip(self.pools, self.hosts, strict=True)):
            at_home = [s for group in self.groups if group.home == home for s in group.sequences]
            pool.check(s.table for s in at_home)
            host.check(s.host_pages for s in at_home)
        slots = [slot for group in self.groups for slot in group.slots]
        slots += [s.slot for s in sequences] + self.scheduler._free_slots
        assert sorted(slots) == list(range(self.max_num_seqs)), "a slot is lost, or held twice"
        for group in self.groups:
            for sequence in group.sequences:
                self._check_sequence(group, sequence)
        self._check_cache()
        usage = self.scheduler.usage()
        assert usage.num_held_pages == sum(pool.num_held for pool in self.pools)
        assert usage.num_filled_slots <= usage.num_held_slots
        assert usage.num_table_entries == sum(len(s.table) for s in sequences)

    def _check_sequence(self, group: Group, sequence: Sequence) -> None:
        truth = self.groups[group][sequence]
        contents = [(group.salt, truth[: end + 1]) for end in range(len(truth))]
        assert sequence.tokens == list(truth)
        assert 0 <= sequence.num_computed < len(truth)
        assert sequence.num_computed <= len(sequence.table) * self.page_size
        assert self.runner.holds(
            self.runner.device, sequence.table, contents[: sequence.num_computed]
        ), f"{sequence}: its pages hold something else"
        if sequence.host_pages:
            assert not sequence.is_running
            assert sequence.num_computed <= sequence.host_start
            end = sequence.host_start + sequence.num_swapped
            assert end <= len(truth)
            assert self.runner.holds(
                self.runner.host, sequence.host_pages, contents[sequence.host_start : end]
            ), f"{sequence}: its host pages hold something else"

    def _check_cache(self) -> None:
        """Assert that pages hold what the prefix index promises of all tokens ever seen."""
        live = {(g.salt, tokens) for g in self.groups for tokens in self.groups[g].values()}
        for pool, (salt, tokens) in product(self.pools, live | self.texts):
            prefix = pool.match(tokens, len(tokens), salt)
            contents = ((salt, tokens[: end + 1]) for end in range(prefix.num_tokens))
            assert self.runner.holds(self.runner.device, prefix.pages, contents)


@final
class _Before:
    """What was so before a step, to judge the step by."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        scheduler = simulation.scheduler
        self._num_preemptions = scheduler.num_preemptions
        self._first = scheduler._admitted[0] if scheduler._admitted else None
        self._ready = [
            s.slot
            for group in scheduler._admitted
            for s in group.sequences
            if s.is_running and s.num_missing == 1 and (group.is_in_step or not group.is_lockstep)
        ]

    def check(self, batch: Batch) -> None:
        simulation = self._simulation
        assert batch.num_tokens <= simulation.max_num_batched_tokens
        assert bool(batch.rows) == bool(simulation.groups), "an idle step while there is work"
        if self._first is not None:
            assert self._first.request_id in {row.request_id for row in batch.rows}, (
                "the first in order has to wait"
            )
        # With pages to spare, nobody who misses one token waits for somebody's long prompt.
        num_free = min(pool.num_free for pool in simulation.pools)
        has_spare = num_free >= 2 + len(batch.copied)
        if has_spare and simulation.scheduler.num_preemptions == self._num_preemptions:
            assert set(self._ready) <= {row.slot for row in batch.rows}
