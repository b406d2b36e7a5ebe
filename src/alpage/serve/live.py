"""Live: what engines have and do at one moment, for those who look on.

It tells no prompt and no answer: requests are numbers, in the order in which they came. All pages
of all memories are rows of one table, memory after memory, so that 30,000 pages are a matter of a
few array operations; changes between two moments are told as runs of equal rows.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from alpage.serve.kv_memory import KvMemory
from alpage.serve.sequence import Group

if TYPE_CHECKING:
    from alpage.serve.engine import Engine

# Of a page: number of the first request in the order of service that holds it, 0 if none does;
# sequences that hold it; tokens in it that they use; 1 if the prefix index knows it. P pages.
NUM_COLUMNS = 4
OWNER, HOLDERS, TOKENS, CACHED = range(NUM_COLUMNS)

State: TypeAlias = Literal["prompt", "decode", "preempted", "swapped", "waiting"]

_MAX_SHOWN_WAITING = 32


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """A request, as others may see it.

    Attributes:
        number: 1 for the first that came.
        state: what it does: computes its prompt, draws, has been pushed out (and waits on the
            host), or was not let in yet.
        num_sequences: continuations that go on.
        num_prompt_tokens: of its prompt.
        num_cached_tokens: of these, found in the prefix cache.
        num_computed_tokens: tokens whose keys and values are there, of all continuations.
        num_drawn_tokens: drawn by the continuations that go on.
        num_table_entries: pages it would hold if its continuations shared nothing.
    """

    number: int
    state: State
    num_sequences: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_drawn_tokens: int
    num_table_entries: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMemory:
    """One memory's pages, the counts as its pool has them.

    Attributes:
        replica: number of the engine that it is of.
        home: its number there.
        num_pages: that there are.
        num_free: that can be given out, those among them that are merely cached included.
        num_evicted: cached pages that were given out for something else, since the start.
        num_copied: pages that were copied because others held them too, since the start.
        num_swapped: pages that went to the host, since the start.
    """

    replica: int
    home: int
    num_pages: int
    num_free: int
    num_evicted: int
    num_copied: int
    num_swapped: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Pages that several requests hold.

    Attributes:
        owners: numbers of the requests.
        pages: rows of the table, as (first, count, first, count, ...).
    """

    owners: tuple[int, ...]
    pages: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """Engines at one moment.

    Attributes:
        at_s: when, by the engines' clock.
        page_size: tokens that a page holds.
        num_running: requests that were let in and are not finished.
        num_waiting: requests that were not let in yet.
        num_preemptions: since the start.
        num_steps: since the start.
        num_computed_tokens: since the start, of prompts and answers.
        num_drawn_tokens: since the start.
        memories: their counts.
        requests: those that run, in the order of service, then the first of those that wait.
        cells_P4: a row for each page; see `NUM_COLUMNS`.
        shares: which pages several requests hold.
        evicted: rows of the pages that were evicted lately, per memory, the last at the end.
        copied: rows of the pages that were copied to lately, likewise.
    """

    at_s: float
    page_size: int
    num_running: int
    num_waiting: int
    num_preemptions: int
    num_steps: int
    num_computed_tokens: int
    num_drawn_tokens: int
    memories: tuple[LiveMemory, ...]
    requests: tuple[LiveRequest, ...]
    cells_P4: NDArray[np.int64]
    shares: tuple[Share, ...]
    evicted: tuple[tuple[int, ...], ...]
    copied: tuple[tuple[int, ...], ...]


def look(engines: Seq["Engine"], at_s: float) -> Snapshot:
    """Return what engines have and do, between two steps of theirs."""
    memories: list[LiveMemory] = []
    cells: list[NDArray[np.int64]] = []
    shares: list[Share] = []
    evicted: list[tuple[int, ...]] = []
    copied: list[tuple[int, ...]] = []
    offset = 0
    for replica, engine in enumerate(engines):
        for home, memory in enumerate(engine.scheduler.memories):
            pool = memory.pool
            groups = [g for g in engine.scheduler.running if g.home == home]
            memories.append(_memory(replica, home, memory))
            own_P4, own_shares = page_cells(memory, groups, offset)
            cells.append(own_P4)
            shares += own_shares
            shift = offset - pool.first
            evicted.append(tuple(page + shift for page in pool.lately_evicted))
            copied.append(tuple(page + shift for page in memory.lately_copied))
            offset += pool.num_pages
    running = [g for engine in engines for g in engine.scheduler.running]
    waiting = [g for engine in engines for g in engine.scheduler.waiting[:_MAX_SHOWN_WAITING]]
    cells_P4 = np.concatenate(cells)
    cells_P4.flags.writeable = False
    return Snapshot(
        at_s=at_s,
        page_size=engines[0].scheduler.memories[0].pool.page_size,
        num_running=len(running),
        num_waiting=sum(engine.scheduler.num_waiting for engine in engines),
        num_preemptions=sum(engine.scheduler.num_preemptions for engine in engines),
        num_steps=sum(engine.num_steps for engine in engines),
        num_computed_tokens=sum(engine.num_computed_tokens for engine in engines),
        num_drawn_tokens=sum(engine.num_drawn_tokens for engine in engines),
        memories=tuple(memories),
        requests=tuple(_request(group) for group in chain(running, waiting[:_MAX_SHOWN_WAITING])),
        cells_P4=cells_P4,
        shares=tuple(shares),
        evicted=tuple(evicted),
        copied=tuple(copied),
    )


def page_cells(
    memory: KvMemory, groups: Seq[Group], offset: int = 0
) -> tuple[NDArray[np.int64], list[Share]]:
    """Return a row for each page of a memory, and which pages several requests hold.

    Args:
        memory: whose pages.
        groups: all that hold pages of it, in the order of service.
        offset: row of its first page among those of other memories.
    """
    pool = memory.pool
    cells_P4 = np.zeros((pool.num_pages, NUM_COLUMNS), np.int64)
    cells_P4[:, HOLDERS] = np.fromiter(pool.all_refs(), np.int64, pool.num_pages)
    cached = pool.indexed_pages()
    cells_P4[np.fromiter(cached, np.int64, len(cached)) - pool.first, CACHED] = 1
    held = [(_number(group), sequence) for group in groups for sequence in group.sequences]
    # One entry for every page of every table. E entries, S sequences.
    length_S = np.array([len(sequence.table) for _, sequence in held], np.int64)
    num_entries = int(length_S.sum())
    page_E = np.fromiter(chain.from_iterable(s.table for _, s in held), np.int64, num_entries)
    page_E -= pool.first
    number_E = np.repeat(np.array([number for number, _ in held], np.int64), length_S)
    computed_E = np.repeat(np.array([s.num_computed for _, s in held], np.int64), length_S)
    place_E = np.arange(num_entries) - np.repeat(np.cumsum(length_S) - length_S, length_S)
    filled_E = np.clip(computed_E - place_E * pool.page_size, 0, pool.page_size)
    np.maximum.at(cells_P4[:, TOKENS], page_E, filled_E)
    # Of several the last that is put stays: the first in the order of service.
    cells_P4[page_E[::-1], OWNER] = number_E[::-1]
    is_shared_E = cells_P4[page_E, OWNER] != number_E
    is_shared_P = np.zeros(pool.num_pages, np.bool_)
    is_shared_P[page_E[is_shared_E]] = True
    several_E = is_shared_P[page_E]
    return cells_P4, _shares(page_E[several_E] + offset, number_E[several_E])


def changes(before_P4: NDArray[np.int64] | None, after_P4: NDArray[np.int64]) -> list[int]:
    """Return what to write over one table to have another, as runs of equal rows.

    Args:
        before_P4: the one; None: all zeros.
        after_P4: the other.

    Returns:
        For each run its first row, how many rows, and what each of them is, all in one list.

    >>> changes(None, np.array([[0, 0, 0, 0], [7, 1, 4, 1], [7, 1, 4, 1], [7, 1, 2, 0]]))
    [1, 2, 7, 1, 4, 1, 3, 1, 7, 1, 2, 0]
    """
    is_changed_P = (after_P4 != (0 if before_P4 is None else before_P4)).any(axis=1)
    row_C = np.flatnonzero(is_changed_P)
    cell_C4 = after_P4[row_C]
    is_first_C = np.ones(len(row_C), np.bool_)
    is_first_C[1:] = (np.diff(row_C) != 1) | (cell_C4[1:] != cell_C4[:-1]).any(axis=1)
    start_R = np.flatnonzero(is_first_C)
    count_R = np.diff(start_R, append=len(row_C))
    runs_R6 = np.column_stack((row_C[start_R], count_R, cell_C4[start_R]))
    return [int(number) for number in runs_R6.ravel().tolist()]


def _shares(page_E: NDArray[np.int64], number_E: NDArray[np.int64]) -> list[Share]:
    """Return which pages have the same owners, given the entries of all that have several."""
    pages_of: dict[tuple[int, ...], list[int]] = {}
    pairs = sorted(set(zip(page_E.tolist(), number_E.tolist(), strict=True)))
    for page, entries in groupby(pairs, key=lambda pair: pair[0]):
        pages_of.setdefault(tuple(number for _, number in entries), []).append(page)
    return [Share(owners=owners, pages=_runs(pages)) for owners, pages in pages_of.items()]


def _runs(pages: Iterable[int]) -> tuple[int, ...]:
    runs: list[int] = []
    for page in pages:
        if runs and page == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (page, 1)
    return tuple(runs)


def _memory(replica: int, home: int, memory: KvMemory) -> LiveMemory:
    return LiveMemory(
        replica=replica,
        home=home,
        num_pages=memory.pool.num_pages,
        num_free=memory.num_free,
        num_evicted=memory.pool.num_evicted,
        num_copied=memory.num_copied_pages,
        num_swapped=memory.num_swapped_pages,
    )


def _request(group: Group) -> LiveRequest:
    num_prompt = len(group.prompt_tokens)
    sequences = group.sequences
    return LiveRequest(
        number=_number(group),
        state=_state(group),
        num_sequences=len(sequences),
        num_prompt_tokens=num_prompt,
        num_cached_tokens=group.num_cached_tokens,
        num_computed_tokens=sum(sequence.num_computed for sequence in sequences),
        num_drawn_tokens=sum(len(sequence.tokens) - num_prompt for sequence in sequences),
        num_table_entries=sum(len(sequence.table) for sequence in sequences),
    )


def _state(group: Group) -> State:
    if not group.sequences:
        return "waiting"
    if not all(sequence.is_running for sequence in group.sequences):
        is_on_host = any(sequence.host_pages for sequence in group.sequences)
        return "swapped" if is_on_host else "preempted"
    return "decode" if group.has_forked else "prompt"


def _number(group: Group) -> int:
    _, arrival = group.key
    return arrival + 1
