"""Scheduler: which tokens of which sequences the next step computes.

One rule: every running sequence has tokens whose keys and values are missing, and a step computes
some of them within one budget. A prompt, a chunk of it, a token just sampled and the tokens of a
preempted sequence differ only in how many are missing.

Order of service is a key, the least first: the arrival's number plus `PATIENCE` per level of
priority. So a request is overtaken by a bounded number of later ones, whatever their priority, and
nobody starves. Who comes earlier takes pages from who comes later, a sequence's tail before a whole
group; since a group is only accepted if all pages of a home together can finish it, the first in
order always goes on.

Pure and deterministic: no torch, no clock (Kwon et al. 2023, arXiv:2309.06180, section 4.5; there
all sequences of a group are preempted together, here as few pages as are needed).
"""

import bisect
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import chain
from typing import final

from alpage.serve.batch import Batch, Forked, Opened, Row
from alpage.serve.kv_memory import KvMemory, KvUsage
from alpage.serve.sequence import Child, Group, Sequence

# Later arrivals that may overtake a request for each level of its priority number.
PATIENCE = 1000


@final
@dataclass(slots=True)
class _Step:
    """The step being put together: what is left of the budget, and what has been taken from it.

    Attributes:
        budget: tokens that may still be computed.
        ready: slots of running sequences that miss one token and have not had their turn; whatever
            comes before them, one token each is left for them.
    """

    budget: int
    ready: set[int]
    has_preempted: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def num_spare(self) -> int:
        """Tokens of the budget that are not kept for anybody."""
        return self.budget - len(self.ready)


@final
class Scheduler:
    """Turns requests into steps.

    Args:
        memories: the page tables of each home: of one device, or of each rank that keeps sequences
            of its own. A request stays at one home.
        max_num_seqs: sequences that hold a slot at a time.
        max_num_batched_tokens: tokens a step computes at most; at least `max_num_seqs`.

    Attributes:
        num_chunk_tokens: of those, beside the single tokens that sequences wait for.
    """

    def __init__(
        self, memories: Seq[KvMemory], *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs, "every running sequence must fit in a step"
        self.memories = memories
        self.num_preemptions = 0
        self.num_swap_preemptions = 0
        self.num_chunk_tokens = max_num_batched_tokens
        self._max_num_batched_tokens = max_num_batched_tokens
        self._free_slots = list(reversed(range(max_num_seqs)))
        self._queue: list[Group] = []
        self._admitted: list[Group] = []
        self._forked: list[Forked] = []
        self._opened: list[Opened] = []

    # -- requests ----------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that have not been admitted yet."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Requests that have been admitted and are not finished."""
        return len(self._admitted)

    @property
    def waiting(self) -> Seq[Group]:
        """Requests that have not been admitted yet, in the order of service."""
        return self._queue

    @property
    def running(self) -> Seq[Group]:
        """Requests that have been admitted and are not finished, in the order of service."""
        return self._admitted

    def add(self, group: Group) -> None:
        """Queue a request; the caller has checked that its pages and slots exist."""
        bisect.insort(self._queue, group, key=_key)

    def finish(self, group: Group) -> None:
        """Take everything from a request that is done or aborted, in whatever state it is."""
        for sequence in group.sequences:
            self._end(group, sequence)
        slots = [*group.slots, *(sequence.slot for sequence in group.sequences)]
        self._free_slots += slots
        self._forked = [fork for fork in self._forked if fork.slot not in slots]
        group.sequences, group.slots = [], []
        if group in self._admitted:
            self._admitted.remove(group)
        else:
            self._queue.remove(group)

    def evolve(
        self, group: Group, parents: Iterable[Sequence], children: Seq[Child]
    ) -> list[Sequence]:
        """Replace sequences that took a step by their children; return these in the order given.

        A parent's first child goes on in its place, further ones fork from it, and a parent without
        children is done.
        """
        going_on = {id(child.parent) for child in children}
        for parent in parents:
            if id(parent) not in going_on:
                self._end(group, parent)
                group.sequences.remove(parent)
                group.slots.append(parent.slot)
        evolved: list[Sequence] = []
        for child in children:
            is_first = id(child.parent) in going_on
            going_on.discard(id(child.parent))
            evolved.append(child.parent if is_first else self._fork(group, child))
        for sequence, child in zip(evolved, children, strict=True):
            sequence.tokens.append(child.token)
            sequence.index = child.index
        group.has_forked = True
        return evolved

    def usage(self) -> KvUsage:
        """KV memory as it is now."""
        usages = [
            memory.usage(s for group in self._at(home) for s in group.sequences)
            for home, memory in enumerate(self.memories)
        ]
        return KvUsage.total(usages)

    def forget_prefixes(self) -> None:
        """Forget all cached prefixes; pages that are held stay held."""
        for memory in self.memories:
            memory.pool.reset()

    def num_cached_tokens(self, group: Group) -> int:
        """Return how much of a prompt some home has in its prefix cache."""
        return max(self._num_cached_at(group, home) for home in range(len(self.memories)))

    # -- the step ----------------------------------------------------------------------------------

    def schedule(self) -> Batch:
        """Decide the next step. It is empty only if there is nothing to do.

        Its tokens count as computed from here on: later rows of the same step may attend to them,
        since the model writes all keys and values of a layer before it attends.
        """
        step = self._begin()
        for group in list(self._admitted):
            self._serve(group, step)
        while self._queue:
            group = self._queue[0]
            if not self._admit(group, step):
                break
            self._serve(group, step)
        moves = [memory.take_moves() for memory in self.memories]
        swapped_out, swapped_in, copied = (
            tuple(chain(*parts)) for parts in zip(*moves, strict=True)
        )
        batch = Batch(
            forked=tuple(self._forked),
            opened=tuple(self._opened),
            swapped_out=swapped_out,
            swapped_in=swapped_in,
            copied=copied,
            rows=tuple(step.rows),
        )
        self._forked, self._opened = [], []
        return batch

    def _begin(self) -> _Step:
        running = (s for group in self._admitted for s in group.sequences if s.is_running)
        ready = {s.slot for s in running if s.num_missing == 1}
        mixed = len(ready) + self.num_chunk_tokens if ready else self._max_num_batched_tokens
        return _Step(min(mixed, self._max_num_batched_tokens), ready)

    def _serve(self, group: Group, step: _Step) -> None:
        """Compute what the budget and the pages allow of the group's missing tokens."""
        if not (group.is_lockstep and group.has_forked):
            for sequence in group.sequences:
                self._resume(group, sequence, step)
                self._compute(group, sequence, step, sequence.num_missing)
            return
        for sequence in group.sequences:
            self._resume(group, sequence, step)
            step.ready.discard(sequence.slot)
        if not group.is_in_step:
            for sequence in group.sequences:
                self._compute(group, sequence, step, sequence.num_missing - 1)
        elif len(group.sequences) <= step.num_spare and all(
            self._reserve(group, sequence, step, 1) for sequence in group.sequences
        ):
            for sequence in group.sequences:
                self._compute(group, sequence, step, 1)

    def _compute(self, group: Group, sequence: Sequence, step: _Step, num_wanted: int) -> None:
        if not sequence.is_running or num_wanted == 0:
            return
        step.ready.discard(sequence.slot)
        num_tokens = min(num_wanted, step.num_spare)
        if num_tokens == 0 or not self._reserve(group, sequence, step, num_tokens):
            return
        start, end = sequence.num_computed, sequence.num_computed + num_tokens
        has_draws = end == len(sequence.tokens) and not group.is_prompt_only
        can_draw_all = not group.has_forked and not group.is_lockstep
        targets = group.prompt_tokens[start + 1 : end + 1] if group.wants_prompt_logprobs else ()
        step.budget -= num_tokens
        step.rows.append(
            Row(
                request_id=group.request_id,
                slot=sequence.slot,
                index=sequence.index,
                start=start,
                tokens=tuple(sequence.tokens[start:end]),
                page_start=sequence.num_sent_pages,
                pages=tuple(sequence.table[sequence.num_sent_pages :]),
                num_draws=0 if not has_draws else group.num_sequences if can_draw_all else 1,
                prompt_targets=targets,
            )
        )
        sequence.num_sent_pages = len(sequence.table)
        self._memory(group).computed(sequence, num_tokens, group.salt)

    # -- admission ---------------------------------------------------------------------------------

    def _admit(self, group: Group, step: _Step) -> bool:
        """Let the first of the queue in, if slots, budget and pages suffice for its prompt."""
        is_behind = step.has_preempted or any(
            not s.is_running for other in self._admitted for s in other.sequences
        )
        has_room = step.num_spare > 0 and group.num_sequences <= len(self._free_slots)
        if is_behind or not has_room:
            return False
        sequence = Sequence(index=0, slot=self._free_slots[-1], tokens=list(group.prompt_tokens))
        if not any(self._move_in(group, sequence, home) for home in self._homes_for(group)):
            return False
        group.num_cached_tokens = sequence.num_computed
        sequence.is_running = True
        slots = [self._free_slots.pop() for _ in range(group.num_sequences)]
        group.sequences, group.slots = [sequence], slots[1:]
        self._opened.append(Opened(sequence.slot, group.request_id, group.prompt_tokens))
        del self._queue[0]
        bisect.insort(self._admitted, group, key=_key)
        return True

    def _homes_for(self, group: Group) -> list[int]:
        """Return the homes, the best first: where the fewest pages are held with the group."""
        if len(self.memories) == 1:
            return [0]

        def num_held(home: int) -> int:
            memory = self.memories[home]
            num_new = len(group.prompt_tokens) - self._num_cached_at(group, home)
            return memory.pool.num_held + memory.num_pages(num_new)

        return sorted(range(len(self.memories)), key=num_held)

    def _num_cached_at(self, group: Group, home: int) -> int:
        if group.wants_prompt_logprobs:
            return 0
        prompt = group.prompt_tokens
        return self.memories[home].pool.match(prompt, len(prompt) - 1, group.salt).num_tokens

    def _move_in(self, group: Group, sequence: Sequence, home: int) -> bool:
        """Let a group live at a home if its prompt fits there, with what is cached there."""
        group.home = home
        if not group.wants_prompt_logprobs:
            self._memory(group).adopt_cached(sequence, group.salt, has_tail=True)
        if self._fits(group, sequence):
            return True
        self._memory(group).release(sequence)
        return False

    def _resume(self, group: Group, sequence: Sequence, step: _Step) -> None:
        """Bring a preempted sequence back if there is room for it.

        The first group of a home takes the room it needs; the others wait until there is some. A
        sibling waits until the leader has what both share.
        """
        if sequence.is_running:
            return
        memory = self._memory(group)
        if sequence is not group.leader:
            if not group.leader.is_running or group.leader.num_missing > 1:
                return
            memory.adopt_shared(sequence, group.leader)
        if group is next(self._at(group.home)):
            need = memory.num_pages_to_grow(sequence, sequence.num_missing)
            has_room = self._make_room(group, sequence, step, need)
        else:
            has_room = not step.has_preempted and self._fits(group, sequence)
        if has_room:
            if not group.wants_prompt_logprobs:
                memory.adopt_cached(sequence, group.salt, has_tail=False)
            memory.swap_in(sequence)
            sequence.is_running = True

    def _fits(self, group: Group, sequence: Sequence) -> bool:
        """Whether all tokens of a sequence fit, beside what the running ones will need next."""
        memory = self._memory(group)
        running = (s for other in self._at(group.home) for s in other.sequences if s.is_running)
        owed = sum(memory.num_pages(len(s.tokens) + 1) - len(s.table) for s in running)
        need = memory.num_pages_to_grow(sequence, sequence.num_missing)
        return need + max(0, owed) <= memory.num_free

    def _memory(self, group: Group) -> KvMemory:
        return self.memories[group.home]

    def _at(self, home: int) -> Iterator[Group]:
        """Yield the admitted groups of a home, in the order of service."""
        return (group for group in self._admitted if group.home == home)

    # -- preemption --------------------------------------------------------------------------------

    def _reserve(self, group: Group, sequence: Sequence, step: _Step, num_tokens: int) -> bool:
        """Make the places of a sequence's next tokens its own; False if it has to wait a step."""
        memory = self._memory(group)
        if memory.has_place(sequence, num_tokens):
            return True
        need = memory.num_pages_to_grow(sequence, num_tokens)
        if not self._make_room(group, sequence, step, need):
            return False
        memory.grow(sequence, num_tokens)
        return True

    def _make_room(self, group: Group, sequence: Sequence, step: _Step, num_pages: int) -> bool:
        """Free pages for a sequence at the cost of those that come after it, the last first."""
        memory = self._memory(group)
        if memory.num_free >= num_pages:
            return True
        step.has_preempted = True
        neighbours = list(self._at(group.home))
        later = neighbours[neighbours.index(group) + 1 :]
        for victim in reversed(later):
            if self._shed(memory, victim.sequences, num_pages):
                return True
            for other in reversed(victim.sequences):
                was_running = other.is_running
                memory.shed_all(other)
                self._note_preemption(other, was_running=was_running)
            if memory.num_free >= num_pages:
                return True
        if group.is_lockstep:
            return False
        siblings = group.sequences[group.sequences.index(sequence) + 1 :]
        return self._shed(memory, siblings, num_pages)

    def _shed(self, memory: KvMemory, sequences: Seq[Sequence], num_pages: int) -> bool:
        """Free the own tails of sequences, the last first, until `num_pages` are free."""
        for sequence in reversed(sequences):
            was_running = sequence.is_running
            memory.shed_tail(sequence, num_pages - memory.num_free)
            self._note_preemption(sequence, was_running=was_running)
            if memory.num_free >= num_pages:
                return True
        return False

    def _note_preemption(self, sequence: Sequence, *, was_running: bool) -> None:
        if was_running and not sequence.is_running:
            self.num_preemptions += 1
            self.num_swap_preemptions += bool(sequence.host_pages)

    def _end(self, group: Group, sequence: Sequence) -> None:
        """Take everything from a sequence that is done. Tails of beams are not worth caching."""
        if group.is_lockstep:
            self._memory(group).release(sequence)
        else:
            self._memory(group).retire(sequence, group.salt)

    def _fork(self, group: Group, child: Child) -> Sequence:
        slot = group.slots.pop()
        sequence = Sequence(index=child.index, slot=slot, tokens=list(child.parent.tokens))
        self._memory(group).fork(child.parent, sequence)
        group.sequences.append(sequence)
        self._forked.append(Forked(child.parent.slot, slot))
        return sequence


def _key(group: Group) -> tuple[int, int]:
    return group.key
