"""Runner: one step on one device: move pages, run the model, draw tokens.

Dims: T new tokens of all rows, R rows that draw, V vocabulary, D model.
"""

from collections.abc import Sequence
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
from alpage.serve.sampler import sample, to_logprobs
from alpage.serve.slots import DrawRule, Slots

# Prompt positions whose logits exist at a time, whatever the prompt's length.
_PROMPT_LOGITS_ROWS = 64


@final
class Runner:
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
        self.model = model
        self.pool = pool
        self._host = host
        self._backend = backend
        self._slots = slots
        self._inputs = StepInputs(pool.page_size, pool.kv_L2PGSK.device)
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
        self._slots.update(batch, self._rules)
        _move(batch.swapped_out, self.pool, self._host)
        _move(batch.swapped_in, self._host, self.pool)
        _move(batch.copied, self.pool, self.pool)
        inputs = self._inputs.fill(batch, self._slots)
        kv = PagedKV(self.pool, inputs.step, self._backend)
        x_TD = self.model.hidden(inputs.token_T, inputs.position_T, kv)
        return self._results(x_TD, batch.rows)

    def _results(self, x_TD: Tensor, rows: Sequence[Row]) -> list[RowResult]:
        results: dict[int, RowResult] = {}
        ends = []
        start = 0
        for number, row in enumerate(rows):
            if row.prompt_targets:
                x_nD = x_TD[start : start + len(row.prompt_targets)]
                results[number] = RowResult(prompt_logprobs=self._prompt_logprobs(x_nD, row))
            start += len(row.tokens)
            if row.num_draws:
                ends.append((number, start - 1))
        if ends:
            numbers, places = zip(*ends, strict=True)
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


def _move(moves: Sequence[Move], source: KvPool, target: KvPool) -> None:
    if moves:
        source.copy_pages([m.source for m in moves], [m.target for m in moves], to=target)
