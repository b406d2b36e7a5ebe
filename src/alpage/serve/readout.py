"""Readout: from what the model's last block gives to the tokens that are drawn from it.

Dims: R rows of x or of logits, V vocabulary, D model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
class Hidden:
    """What the model's last block gave for a step's rows.

    Attributes:
        rows: of the step.
        lasts: where in x each row's last token is, if x has any of the row.
        model: it goes on from x.
        x_RD: behind the last norm: of each row its last tokens, all of them or fewer.
    """

    rows: Sequence[Row]
    lasts: Sequence[int]
    model: Model
    x_RD: Tensor

    def logits(self, places: Sequence[int]) -> Tensor:
        """Return logits_RV of x's rows at these places."""
        x_RD = self.x_RD
        # A rank that has some of the tokens only has to ask others for rows, however many it has.
        if self.model.sharder is not REPLICATED or len(places) != len(x_RD):
            x_RD = self.model.sharder.rows(x_RD, torch.tensor(places, device=x_RD.device))
        return self.model.logits(x_RD)

    def drawing(self) -> tuple[list[int], list[int]]:
        """Return the rows that draw: their numbers, and the places of their last tokens."""
        numbers = [number for number, row in enumerate(self.rows) if row.num_draws]
        return numbers, [self.lasts[number] for number in numbers]

    def scored(self) -> Iterator[tuple[int, range]]:
        """Yield the rows whose prompt's log-probabilities are wanted: number, tokens' places."""
        for number, (row, last) in enumerate(zip(self.rows, self.lasts, strict=True)):
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
            len(row.tokens)
            if row.prompt_targets
            else int(row.num_draws > 0 or self._wants_state(row))
            for row in rows
        ]

    def read(self, hidden: Hidden) -> list[RowResult]:
        """Return what each row gives."""
        rows = hidden.rows
        logprobs = {
            number: self._prompt_logprobs(hidden, scored, rows[number])
            for number, scored in hidden.scored()
        }
        results = [RowResult()] * len(rows)
        numbers, places = hidden.drawing()
        if places:
            drawing = [rows[number] for number in numbers]
            drawn = sample(hidden.logits(places), drawing, self._slots)
            for number, result in zip(numbers, drawn, strict=True):
                results[number] = result
        for number, entries in logprobs.items():
            results[number] = replace(results[number], prompt_logprobs=entries)
        for number, (row, place) in enumerate(zip(rows, hidden.lasts, strict=True)):
            if self._wants_state(row):
                state = tuple(hidden.x_RD[place].float().tolist())
                results[number] = replace(results[number], state=state)
        return results

    def follow(self, hidden: Hidden) -> None:
        """Compute the same logits, in the same order, beside the rank that draws."""
        for _, scored in hidden.scored():
            for some in _some_at_a_time(scored):
                hidden.logits(some)
        _, places = hidden.drawing()
        if places:
            hidden.logits(places)

    def _wants_state(self, row: Row) -> bool:
        """Whether the state of a row's last token, which ends its prompt, is wanted."""
        params = self._rules[row.request_id].params
        is_wanted = isinstance(params, SamplingParams) and params.has_embedding
        return is_wanted and row.context == self._slots.num_prompt_tokens_N[row.slot]

    def _prompt_logprobs(
        self, hidden: Hidden, places: range, row: Row
    ) -> tuple[TokenLogprobs, ...]:
        params = self._rules[row.request_id].params
        assert isinstance(params, SamplingParams)
        assert params.prompt_logprobs is not None
        entries: list[TokenLogprobs] = []
        for some in _some_at_a_time(places):
            logits_RV = hidden.logits(some)
            targets = row.prompt_targets[some.start - places.start : some.stop - places.start]
            target_R = torch.tensor(targets, device=logits_RV.device)
            ranked = sampling.rank_logprobs(logits_RV, target_R, params.prompt_logprobs)
            entries += to_logprobs(ranked, targets, [params.prompt_logprobs] * len(targets))
        return tuple(entries)


def _some_at_a_time(places: range) -> Iterator[range]:
    for start in range(places.start, places.stop, _PROMPT_LOGITS_ROWS):
        yield range(start, min(start + _PROMPT_LOGITS_ROWS, places.stop))
