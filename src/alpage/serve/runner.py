"""Runner: one step on one device: move pages, run the model, draw tokens.

Dims: T new tokens of all rows, R rows that draw, V vocabulary, D model.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from alpage.models import Model
from alpage.ops import sampling
from alpage.ops.attention import Backend, PagedKV
from alpage.ops.kv import KvPool
from alpage.serve.batch import Batch, Move, Row
from alpage.serve.inputs import StepInputs
from alpage.serve.outputs import TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.runs import Profile, Runs
from alpage.serve.sampler import sample, to_logprobs
from alpage.serve.slots import DrawRule, Slots

# Prompt positions whose logits exist at a time, whatever the prompt's length.
_PROMPT_LOGITS_ROWS = 64


@final
class Runner(Runs):
    """A model, its pages and the state of its slots.

    Args:
        model: runs on the pool's device.
        pool: the pages.
        host: pages to swap to.
        backend: computes attention.
        slots: a row for each sequence that may run.
    """

    def __init__(
        self, model: Model, pool: KvPool, host: KvPool, backend: Backend, slots: Slots
    ) -> None:
        kv = pool.kv_L2PGSK
        self.profile = Profile(shape=model.shape, dtype=kv.dtype, device=kv.device)
        self.model = model
        self.pool = pool
        self._host = host
        self._backend = backend
        self._slots = slots
        self._inputs = StepInputs(pool.page_size, pool.kv_L2PGSK.device)
        self._rules: dict[str, DrawRule] = {}
        self._drawn: list[RowResult] = []

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""
        self._rules[request_id] = rule

    def close(self, request_id: str) -> None:
        """Forget a request."""
        del self._rules[request_id]

    def start(self, batch: Batch) -> None:
        """Make a step, the whole of it."""
        self._drawn = self.run(batch)

    def finish(self) -> list[RowResult]:
        """Return what each row of the step gave."""
        return self._drawn

    @property
    def signals(self) -> Sequence[int]:
        """None, for a step that has started is done."""
        return ()

    @property
    def due_s(self) -> float:
        """Always."""
        return math.inf

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """Make a step; return what each row gave."""
        return self._results(self._hidden(batch), batch.rows)

    @torch.inference_mode()
    def follow(self, batch: Batch) -> None:
        """Make a step beside the rank that runs it: take part in all that ranks do together."""
        x_TD = self._hidden(batch)
        for _, x_nD in _prompt_rows(x_TD, batch.rows):
            for x_RD in torch.split(x_nD, _PROMPT_LOGITS_ROWS):
                self.model.logits(x_RD)
        _, places = _drawing(batch.rows)
        if places:
            self.model.logits(x_TD[torch.tensor(places, device=x_TD.device)])

    def _hidden(self, batch: Batch) -> Tensor:
        self._slots.update(batch, self._rules)
        _move(batch.swapped_out, self.pool, self._host)
        _move(batch.swapped_in, self._host, self.pool)
        _move(batch.copied, self.pool, self.pool)
        inputs = self._inputs.fill(batch, self._slots)
        kv = PagedKV(self.pool, inputs.step, self._backend)
        return self.model.hidden(inputs.token_T, inputs.position_T, kv)

    def _results(self, x_TD: Tensor, rows: Sequence[Row]) -> list[RowResult]:
        results = {
            number: RowResult(prompt_logprobs=self._prompt_logprobs(x_nD, rows[number]))
            for number, x_nD in _prompt_rows(x_TD, rows)
        }
        numbers, places = _drawing(rows)
        if places:
            x_RD = x_TD[torch.tensor(places, device=x_TD.device)]
            drawing = [rows[number] for number in numbers]
            drawn = sample(self.model.logits(x_RD).float(), drawing, self._slots)
            for number, result in zip(numbers, drawn, strict=True):
                before = results.get(number, result)
                results[number] = RowResult(
                    tokens=result.tokens,
                    logprobs=result.logprobs,
                    candidates=result.candidates,
                    prompt_logprobs=before.prompt_logprobs,
                )
        return [results.get(number, RowResult()) for number in range(len(rows))]

    def _prompt_logprobs(self, x_nD: Tensor, row: Row) -> tuple[TokenLogprobs, ...]:
        params = self._rules[row.request_id].params
        assert isinstance(params, SamplingParams)
        assert params.prompt_logprobs is not None
        entries: list[TokenLogprobs] = []
        for start in range(0, len(x_nD), _PROMPT_LOGITS_ROWS):
            logits_RV = self.model.logits(x_nD[start : start + _PROMPT_LOGITS_ROWS]).float()
            targets = row.prompt_targets[start : start + _PROMPT_LOGITS_ROWS]
            target_R = torch.tensor(targets, device=logits_RV.device)
            ranked = sampling.rank_logprobs(logits_RV, target_R, params.prompt_logprobs)
            entries += to_logprobs(ranked, targets, [params.prompt_logprobs] * len(targets))
        return tuple(entries)


def _prompt_rows(x_TD: Tensor, rows: Sequence[Row]) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows whose prompt's log-probabilities are wanted: number and x_nD."""
    start = 0
    for number, row in enumerate(rows):
        if row.prompt_targets:
            yield number, x_TD[start : start + len(row.prompt_targets)]
        start += len(row.tokens)


def _drawing(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return the rows that draw: their numbers, and the places of their last tokens."""
    lasts = [end - 1 for end in accumulate(len(row.tokens) for row in rows)]
    numbers = [number for number, row in enumerate(rows) if row.num_draws]
    return numbers, [lasts[number] for number in numbers]


def _move(moves: Sequence[Move], source: KvPool, target: KvPool) -> None:
    if moves:
        source.copy_pages([m.source for m in moves], [m.target for m in moves], to=target)
