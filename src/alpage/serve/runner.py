"""Runner: one step on one device: move pages, run the model, draw tokens.

Dims: T new tokens of all rows, R rows that draw, V vocabulary, D model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, final

import torch
from torch import Tensor

from alpage.models import Model
from alpage.ops import sampling
from alpage.ops.attention import Backend, PagedKV
from alpage.ops.kv import KvPool
from alpage.serve.batch import Batch, Move, Row
from alpage.serve.home import Home
from alpage.serve.inputs import StepInputs
from alpage.serve.outputs import TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.sampler import sample, to_logprobs
from alpage.serve.slots import DrawRule, Slots
from alpage.workload import ModelShape

# Prompt positions whose logits exist at a time, whatever the prompt's length.
_PROMPT_LOGITS_ROWS = 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a step's price depends on.

    Attributes:
        shape: of the whole model.
        dtype: of weights, keys and values.
        device: that computes.
    """

    shape: ModelShape
    dtype: torch.dtype
    device: torch.device


class Runs(Protocol):
    """Makes an engine's steps."""

    profile: Profile

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""

    def close(self, request_id: str) -> None:
        """Forget a request."""

    def run(self, batch: Batch) -> list[RowResult]:
        """Make a step; return what each row gave."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A model in the layout for steps of some size.

    Attributes:
        model: the views of a runner share its weights.
        min_tokens: steps of fewer tokens run in another view.
        num_token_shards: parts that a step's tokens are cut into.
    """

    model: Model
    min_tokens: int = 0
    num_token_shards: int = 1


@final
class Runner(Runs):
    """A model, its pages and the state of its slots.

    Args:
        views: of the model, for ever larger steps; they run on the pool's device.
        pool: the pages.
        host: pages to swap to.
        backend: computes attention.
        slots: a row for each sequence that may run.
        home: whose pages are here; None: everybody's.
    """

    def __init__(
        self,
        views: Sequence[View],
        pool: KvPool,
        host: KvPool,
        backend: Backend,
        slots: Slots,
        home: Home | None = None,
    ) -> None:
        kv = pool.kv_L2PGSK
        self.profile = Profile(shape=views[0].model.shape, dtype=kv.dtype, device=kv.device)
        self.views = views
        self.pool = pool
        self._host = host
        self._backend = backend
        self._slots = slots
        self._home = home or Home(num_pages=pool.num_pages, num_host_pages=host.num_pages)
        self._inputs = StepInputs(pool.page_size, pool.kv_L2PGSK.device, self._home)
        self._rules: dict[str, DrawRule] = {}

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""
        self._rules[request_id] = rule

    def close(self, request_id: str) -> None:
        """Forget a request."""
        del self._rules[request_id]

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """Make a step; return what each row gave."""
        view, rows, x_TD = self._hidden(batch)
        results = iter(self._results(view.model, x_TD, rows))
        by_slot = {row.slot: next(results) for row in rows}
        return [by_slot[row.slot] for row in batch.rows]

    @torch.inference_mode()
    def follow(self, batch: Batch) -> None:
        """Make a step beside the rank that runs it: take part in all that ranks do together."""
        view, rows, x_TD = self._hidden(batch)
        for _, scored in _prompt_rows(rows):
            for some in _some_at_a_time(scored):
                self._logits(view.model, x_TD, some)
        _, places = _drawing(rows)
        if places:
            self._logits(view.model, x_TD, places)

    def _hidden(self, batch: Batch) -> tuple[View, list[Row], Tensor]:
        """Return the view that ran, the rows in the order of their homes, and the output x_TD."""
        self._slots.update(batch, self._rules)
        _move(self._home.out(batch.swapped_out), self.pool, self._host)
        _move(self._home.back(batch.swapped_in), self._host, self.pool)
        _move(self._home.copies(batch.copied), self.pool, self.pool)
        rows = [batch.rows[number] for number in self._home.order(batch.rows, self._slots)]
        view = [view for view in self.views if view.min_tokens <= batch.num_tokens][-1]
        inputs = self._inputs.fill(rows, self._slots, view.num_token_shards)
        view.model.sharder.place(inputs.num_tokens)
        kv = PagedKV(self.pool, inputs.step, self._backend)
        return view, rows, view.model.hidden(inputs.token_T, inputs.position_T, kv)

    def _logits(self, model: Model, x_TD: Tensor, places: Sequence[int]) -> Tensor:
        place_R = torch.tensor(places, device=x_TD.device)
        return model.logits(model.sharder.rows(x_TD, place_R)).float()

    def _results(self, model: Model, x_TD: Tensor, rows: Sequence[Row]) -> list[RowResult]:
        results = {
            number: RowResult(
                prompt_logprobs=self._prompt_logprobs(model, x_TD, places, rows[number])
            )
            for number, places in _prompt_rows(rows)
        }
        numbers, places = _drawing(rows)
        if places:
            drawing = [rows[number] for number in numbers]
            drawn = sample(self._logits(model, x_TD, places), drawing, self._slots)
            for number, result in zip(numbers, drawn, strict=True):
                before = results.get(number, result)
                results[number] = RowResult(
                    tokens=result.tokens,
                    logprobs=result.logprobs,
                    candidates=result.candidates,
                    prompt_logprobs=before.prompt_logprobs,
                )
        return [results.get(number, RowResult()) for number in range(len(rows))]

    def _prompt_logprobs(
        self, model: Model, x_TD: Tensor, places: range, row: Row
    ) -> tuple[TokenLogprobs, ...]:
        params = self._rules[row.request_id].params
        assert isinstance(params, SamplingParams)
        assert params.prompt_logprobs is not None
        entries: list[TokenLogprobs] = []
        for some in _some_at_a_time(places):
            logits_RV = self._logits(model, x_TD, some)
            targets = row.prompt_targets[some.start - places.start : some.stop - places.start]
            target_R = torch.tensor(targets, device=logits_RV.device)
            ranked = sampling.rank_logprobs(logits_RV, target_R, params.prompt_logprobs)
            entries += to_logprobs(ranked, targets, [params.prompt_logprobs] * len(targets))
        return tuple(entries)


def _prompt_rows(rows: Sequence[Row]) -> Iterator[tuple[int, range]]:
    """Yield the rows whose prompt's log-probabilities are wanted: number and tokens' places."""
    start = 0
    for number, row in enumerate(rows):
        if row.prompt_targets:
            yield number, range(start, start + len(row.prompt_targets))
        start += len(row.tokens)


def _some_at_a_time(places: range) -> Iterator[range]:
    for start in range(places.start, places.stop, _PROMPT_LOGITS_ROWS):
        yield range(start, min(start + _PROMPT_LOGITS_ROWS, places.stop))


def _drawing(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return the rows that draw: their numbers, and the places of their last tokens."""
    lasts = [end - 1 for end in accumulate(len(row.tokens) for row in rows)]
    numbers = [number for number, row in enumerate(rows) if row.num_draws]
    return numbers, [lasts[number] for number in numbers]


def _move(moves: Sequence[Move], source: KvPool, target: KvPool) -> None:
    if moves:
        source.copy_pages([m.source for m in moves], [m.target for m in moves], to=target)
