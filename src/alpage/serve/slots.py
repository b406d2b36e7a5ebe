"""Slots: what the runner remembers of each sequence between steps, a row of plain arrays each.

A step's rows carry only what is new; forks copy a row. Dims: N slots, P pages of the longest
sequence, C its positions.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from alpage.serve.batch import Batch
from alpage.serve.params import BeamSearchParams, SamplingParams


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRule:
    """How the tokens of a request are chosen.

    Attributes:
        params: what the request asked for.
        seed: of its random numbers, 0 to 2^64 - 1.
        end_ids: tokens that end it, which `min_tokens` holds back.
    """

    params: SamplingParams | BeamSearchParams
    seed: int
    end_ids: tuple[int, ...]

    @property
    def num_candidates(self) -> int:
        """Likeliest tokens that beam search wants of every hypothesis.

        Of (1 + ends) x width there are always `width` that do not end; at least 2 x width are
        looked at, as Hugging Face does.
        """
        if isinstance(self.params, SamplingParams):
            return 0
        return max(2, 1 + len(self.end_ids)) * self.params.beam_width


@final
@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to the logits of some tokens."""

    tokens: NDArray[np.int64]
    values: NDArray[np.float32]


NO_BIAS = Bias(np.empty(0, np.int64), np.empty(0, np.float32))


@final
class Slots:
    """Arrays with a row per slot."""

    def __init__(self, num_slots: int, max_positions: int, page_size: int) -> None:
        self.table_NP: NDArray[np.int32] = np.zeros(
            (num_slots, -(-max_positions // page_size)), np.int32
        )
        self.token_NC: NDArray[np.int32] = np.zeros((num_slots, max_positions), np.int32)
        self.num_prompt_tokens_N: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.seed_N: NDArray[np.uint64] = np.zeros(num_slots, np.uint64)
        self.temperature_N: NDArray[np.float32] = np.zeros(num_slots, np.float32)
        self.top_k_N: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.top_p_N: NDArray[np.float32] = np.ones(num_slots, np.float32)
        self.min_p_N: NDArray[np.float32] = np.zeros(num_slots, np.float32)
        self.repetition_penalty_N: NDArray[np.float32] = np.ones(num_slots, np.float32)
        self.presence_penalty_N: NDArray[np.float32] = np.zeros(num_slots, np.float32)
        self.frequency_penalty_N: NDArray[np.float32] = np.zeros(num_slots, np.float32)
        self.min_tokens_N: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        # Rows whose logits are changed before a token is drawn, most are not; and those of them
        # that tokens seen before are held against.
        self.is_adjusted_N: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.is_penalized_N: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.biases: list[Bias] = [NO_BIAS] * num_slots
        self._rules: list[DrawRule | None] = [None] * num_slots

    def rule(self, slot: int) -> DrawRule:
        """Return how the sequence of a slot draws."""
        rule = self._rules[slot]
        assert rule is not None, "a row's slot is opened before it draws"
        return rule

    def update(self, batch: Batch, rules: dict[str, DrawRule]) -> None:
        """Take in what a step says is new, in the step's order."""
        for fork in batch.forked:
            self._fork(fork.source, fork.slot)
        for opened in batch.opened:
            self._open(opened.slot, opened.tokens, rules[opened.request_id])
        for row in batch.rows:
            self.table_NP[row.slot, row.page_start : row.page_start + len(row.pages)] = row.pages
            self.token_NC[row.slot, row.start : row.context] = row.tokens

    def _fork(self, source: int, slot: int) -> None:
        for array in (
            self.table_NP,
            self.token_NC,
            self.num_prompt_tokens_N,
            self.seed_N,
            self.temperature_N,
            self.top_k_N,
            self.top_p_N,
            self.min_p_N,
            self.repetition_penalty_N,
            self.presence_penalty_N,
            self.frequency_penalty_N,
            self.min_tokens_N,
            self.is_adjusted_N,
            self.is_penalized_N,
        ):
            array[slot] = array[source]
        self.biases[slot] = self.biases[source]
        self._rules[slot] = self._rules[source]

    def _open(self, slot: int, tokens: tuple[int, ...], rule: DrawRule) -> None:
        self.token_NC[slot, : len(tokens)] = tokens
        self.num_prompt_tokens_N[slot] = len(tokens)
        self.seed_N[slot] = rule.seed
        self._rules[slot] = rule
        params = rule.params
        self.min_tokens_N[slot] = params.min_tokens
        self.is_penalized_N[slot] = False
        self.biases[slot] = NO_BIAS
        if isinstance(params, SamplingParams):
            self._open_sampling(slot, params)
        self.is_adjusted_N[slot] = (
            params.min_tokens > 0 or self.is_penalized_N[slot] or self.biases[slot] is not NO_BIAS
        )

    def _open_sampling(self, slot: int, params: SamplingParams) -> None:
        self.temperature_N[slot] = params.temperature
        self.top_k_N[slot] = params.top_k if params.top_k > 0 else np.iinfo(np.int64).max
        self.top_p_N[slot] = params.top_p
        self.min_p_N[slot] = params.min_p
        self.repetition_penalty_N[slot] = params.repetition_penalty
        self.presence_penalty_N[slot] = params.presence_penalty
        self.frequency_penalty_N[slot] = params.frequency_penalty
        self.is_penalized_N[slot] = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )
        if params.logit_bias:
            self.biases[slot] = Bias(
                np.array(list(params.logit_bias), np.int64),
                np.array(list(params.logit_bias.values()), np.float32),
            )
