"""Readout: from what the model's last block gives to the tokens that are drawn from it.

Dims: T new tokens of all rows, R rows whose logits are wanted, V vocabulary, D model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from alpage.models import Model
from alpage.ops import sampling
from alpage.serve.batch import Row
from alpage.serve.outputs import TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.sampler import sample, to_logprobs
from alpage.serve.slots import DrawRule, Slots

# Prompt positions whose logits exist at a time, whatever the prompt's length.
_PROMPT_LOGITS_ROWS = 64


@final
class Readout:
    """Draws.

    Args:
        slots: the state of each sequence.
        rules: how each request draws; more may come.
    """

    def __init__(self, slots: Slots, rules: Mapping[str, DrawRule]) -> None:
        self._slots = slots
        self._rules = rules

    def read(self, rows: Sequence[Row], model: Model, x_TD: Tensor) -> list[RowResult]:
        """Return what each row gives."""
        logprobs = {
            number: self._prompt_logprobs(model, x_TD, scored, rows[number])
            for number, scored in _prompt_rows(rows)
        }
        results = [RowResult()] * len(rows)
        numbers, places = _drawing(rows)
        if places:
            drawing = [rows[number] for number in numbers]
            drawn = sample(_logits(model, x_TD, places), drawing, self._slots)
            for number, result in zip(numbers, drawn, strict=True):
                results[number] = result
        for number, entries in logprobs.items():
            results[number] = replace(results[number], prompt_logprobs=entries)
        for number, place in self._prompt_ends(rows):
            state = tuple(x_TD[place].float().tolist())
            results[number] = replace(results[number], state=state)
        return results

    def follow(self, rows: Sequence[Row], model: Model, x_TD: Tensor) -> None:
        """Compute the same logits, in the same order, beside the rank that draws."""
        for _, scored in _prompt_rows(rows):
            for some in _some_at_a_time(scored):
                _logits(model, x_TD, some)
        _, places = _drawing(rows)
        if places:
            _logits(model, x_TD, places)

    def _prompt_ends(self, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
        """Yield the rows whose state is wanted: number and last token's place."""
        for number, (row, place) in enumerate(zip(rows, _lasts(rows), strict=True)):
            params = self._rules[row.request_id].params
            is_wanted = isinstance(params, SamplingParams) and params.has_embedding
            if is_wanted and row.context == self._slots.num_prompt_tokens_N[row.slot]:
                yield number, place

    def _prompt_logprobs(
        self, model: Model, x_TD: Tensor, places: range, row: Row
    ) -> tuple[TokenLogprobs, ...]:
        params = self._rules[row.request_id].params
        assert isinstance(params, SamplingParams)
        assert params.prompt_logprobs is not None
        entries: list[TokenLogprobs] = []
        for some in _some_at_a_time(places):
            logits_RV = _logits(model, x_TD, some)
            targets = row.prompt_targets[some.start - places.start : some.stop - places.start]
            target_R = torch.tensor(targets, device=logits_RV.device)
            ranked = sampling.rank_logprobs(logits_RV, target_R, params.prompt_logprobs)
            entries += to_logprobs(ranked, targets, [params.prompt_logprobs] * len(targets))
        return tuple(entries)


def _rows(model: Model, x_TD: Tensor, places: Sequence[int]) -> Tensor:
    if len(places) == len(x_TD):
        return x_TD
    return model.sharder.rows(x_TD, torch.tensor(places, device=x_TD.device))


def _logits(model: Model, x_TD: Tensor, places: Sequence[int]) -> Tensor:
    return model.logits(_rows(model, x_TD, places))


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
    lasts = _lasts(rows)
    numbers = [number for number, row in enumerate(rows) if row.num_draws]
    return numbers, [lasts[number] for number in numbers]


def _lasts(rows: Sequence[Row]) -> list[int]:
    """Return the place of each row's last token."""
    return [end - 1 for end in accumulate(len(row.tokens) for row in rows)]
