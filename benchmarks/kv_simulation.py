"""KV simulation: the engine's scheduler and page tables, with tokens that no model made.

What a page holds does not matter to who holds it, so memory is exactly what it would be with a
model, as long as outputs have the lengths that are given.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from alpage.serve.batch import Batch
from alpage.serve.kv_memory import KvMemory, KvUsage, PreemptionCost
from alpage.serve.pages import PagePool
from alpage.serve.scheduler import Scheduler
from alpage.serve.sequence import Child, Group
from benchmarks.lengths import Lengths


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An engine's: its defaults, and a pool so large that nothing is ever preempted."""

    page_size: int = 16
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    num_pages: int = 2**17


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A sequence during a step.

    Attributes:
        num_prompt: tokens of its prompt.
        num_output: tokens that it is going to output.
        num_filled: tokens whose keys and values there are.
    """

    num_prompt: int
    num_output: int
    num_filled: int


def simulate(
    lengths: Lengths, setting: Setting, *, n: int = 1
) -> Iterator[tuple[KvUsage, list[Running]]]:
    """Yield, for every step until all requests are done, the KV memory and what runs in it.

    Args:
        lengths: prompt and output tokens of requests, all there at the start.
        setting: the engine's.
        n: continuations that are sampled of each, all of the same length.
    """
    scheduler = _scheduler(setting)
    tokens = itertools.count()  # no two alike, so no prefix is ever found in the cache
    groups = {}
    for number, (num_prompt, num_output) in enumerate(lengths):
        group = Group(
            request_id=str(number),
            key=(number, number),
            prompt_tokens=tuple(itertools.islice(tokens, num_prompt)),
            num_sequences=n,
            max_new_tokens=num_output,
        )
        groups[group.request_id] = group
        scheduler.add(group)
    while scheduler.num_waiting or scheduler.num_running:
        batch = scheduler.schedule()
        yield scheduler.usage(), _running(batch, groups)
        _commit(batch, groups, scheduler, tokens)
    assert scheduler.num_preemptions == 0, "the pool is too small for this concurrency"


def _scheduler(setting: Setting) -> Scheduler:
    cost = PreemptionCost(swap_s_per_page=0.0, recompute_s_per_token=0.0)
    host = PagePool(0, setting.page_size, has_prefix_cache=False)
    return Scheduler(
        [KvMemory(PagePool(setting.num_pages, setting.page_size), host, cost)],
        max_num_seqs=setting.max_num_seqs,
        max_num_batched_tokens=setting.max_num_batched_tokens,
    )


def _running(batch: Batch, groups: dict[str, Group]) -> list[Running]:
    return [
        Running(
            num_prompt=len(groups[row.request_id].prompt_tokens),
            num_output=groups[row.request_id].max_new_tokens,
            num_filled=row.context,
        )
        for row in batch.rows
    ]


def _commit(
    batch: Batch, groups: dict[str, Group], scheduler: Scheduler, tokens: Iterator[int]
) -> None:
    """Give every row that draws its tokens, as the engine does with those of a model."""
    drawing: dict[str, dict[int, int]] = {}
    for row in batch.rows:
        if row.num_draws:
            drawing.setdefault(row.request_id, {})[row.slot] = row.num_draws
    for request_id, num_draws in drawing.items():
        group = groups[request_id]
        parents = [sequence for sequence in group.sequences if sequence.slot in num_draws]
        children = [
            Child(parent, next(tokens), parent.index + draw)
            for parent in parents
            for draw in range(num_draws[parent.slot])
            if len(parent.tokens) + 1 < len(group.prompt_tokens) + group.max_new_tokens
        ]
        if children:
            scheduler.evolve(group, parents, children)
        else:
            scheduler.finish(group)
