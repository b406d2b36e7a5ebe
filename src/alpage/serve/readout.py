"""Readout: from what the model's last block gives to the tokens that are drawn from it.

Dims: R rows of x or of logits, V vocabulary, D model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from alpage.models import Model
from alpage.ops import sampling
from alpage.partition import REPLICATED
from alpage.serve.batch import Row
from alpage.serve.outputs import TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.sampler import sample, to_logprobs
from alpage.serve.slots import DrawRule, Slots

# Prompt positions whose logits exist at a time, whatever the prompt's length.
_PROMPT_LOGITS_ROWS = 64


@final
@dataclass(frozen=True, slots=True)
class State:
    """What the model's last block gave for a step's rows.

    Attributes:
        rows: of the step.
        num_kept: of each row, how many of its last tokens x has.
        model: it goes on from x.
        x_RD: behind the last norm.
    """

    rows: Sequence[Row]
    num_kept: Sequence[int]
    model: Model
    x_RD: Tensor

    def logits(self, places: Sequence[int]) -> Tensor:
        """Return logits_RV of some of x's rows."""
        x_RD = self.x_RD
        # A rank that has some of the tokens only has to ask others for rows, however many it has.
        if self.model.sharder is not REPLICATED or len(places) != len(x_RD):
            x_RD = self.model.sharder.rows(x_RD, torch.tensor(places, device=x_RD.device))
        return self.model.logits(x_RD)

    def lasts(self) -> list[int]:
        """Return the place of each row's last token."""
        return [end - 1 for end in accumulate(self.num_kept)]

    def drawing(self) -> tuple[list[int], list[int]]:
        """Return the rows that draw: their numbers, and the places of their last tokens."""
        lasts = self.lasts()
        numbers = [number for number, row in enumerate(self.rows) if row.num_draws]
        return numbers, [lasts[number] for number in numbers]

    def scored(self) -> Iterator[tuple[int, range]]:
        """Yield the rows whose prompt's log-probabilities are wanted: number, tokens' places."""
        for number, (row, last) in enumerate(zip(self.rows, self.lasts(), strict=True)):
            if row.prompt_targets:
                start = last + 1 - len(row.tokens)
                yield number, range(start, start + len(row.prompt_targets))


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

    def num_read(self, rows: Sequence[Row]) -> list[int]:
        """Return how many of each row's last tokens `read` looks at."""
        return [
            len(row.tokens) if row.prompt_targets else int(row.num_draws > 0 or self._is_state(row))
            for row in rows
        ]

    def read(self, state: State) -> list[RowResult]:
        """Return what each row gives."""
        rows = state.rows
        logprobs = {
            number: self._prompt_logprobs(state, scored, rows[number])
            for number, scored in state.scored()
        }
        results = [RowResult()] * len(rows)
        numbers, places = state.drawing()
        if places:
            drawing = [rows[number] for number in numbers]
            drawn = sample(state.logits(places), drawing, self._slots)
            for number, result in zip(numbers, drawn, strict=True):
                results[number] = result
        for number, entries in logprobs.items():
            results[number] = replace(results[number], prompt_logprobs=entries)
        for number, (row, place) in enumerate(zip(rows, state.lasts(), strict=True)):
            if self._is_state(row):
                numbers_D = tuple(state.x_RD[place].float().tolist())
                results[number] = replace(results[number], state=numbers_D)
        return results

    def follow(self, state: State) -> None:
        """Compute the same logits, in the same order, beside the rank that draws."""
        for _, scored in state.scored():
            for some in _some_at_a_time(scored):
                state.logits(some)
        _, places = state.drawing()
        if places:
            state.logits(places)

    def _is_state(self, row: Row) -> bool:
        """Whether the state of a row's last token, which ends its prompt, is wanted."""
        params = self._rules[row.request_id].params
        is_wanted = isinstance(params, SamplingParams) and params.has_embedding
        return is_wanted and row.context == self._slots.num_prompt_tokens_N[row.slot]

    def _prompt_logprobs(self, state: State, places: range, row: Row) -> tuple[TokenLogprobs, ...]:
        params = self._rules[row.request_id].params
        assert isinstance(params, SamplingParams)
        assert params.prompt_logprobs is not None
        entries: list[TokenLogprobs] = []
        for some in _some_at_a_time(places):
            logits_RV = state.logits(some)
            targets = row.prompt_targets[some.start - places.start : some.stop - places.start]
            target_R = torch.tensor(targets, device=logits_RV.device)
            ranked = sampling.rank_logprobs(logits_RV, target_R, params.prompt_logprobs)
            entries += to_logprobs(ranked, targets, [params.prompt_logprobs] * len(targets))
        return tuple(entries)


def _some_at_a_time(places: range) -> Iterator[range]:
    for start in range(places.start, places.stop, _PROMPT_LOGITS_ROWS):
        yield range(start, min(start + _PROMPT_LOGITS_ROWS, places.stop))
