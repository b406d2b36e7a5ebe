"""Adjusted logits: every row gets what its own request asks for, whatever its neighbours ask."""

import numpy as np
import pytest
import torch

from alpage.serve.adjust import adjust
from alpage.serve.batch import Batch, Opened, Row
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.slots import DrawRule, Slots

V, PROMPT, ENDS = 40, (3, 5, 5, 7), (1, 2)
OUTPUT = (5, 9, 9, 9)
RULES = {
    "plain": SamplingParams(),
    "repetition": SamplingParams(repetition_penalty=1.7),
    "occurrence": SamplingParams(presence_penalty=0.5, frequency_penalty=-0.25),
    "bias": SamplingParams(logit_bias={0: 5.0, 39: -100.0}),
    "held": SamplingParams(min_tokens=5),
    "released": SamplingParams(min_tokens=4),
    "beam": BeamSearchParams(beam_width=2, max_tokens=9, min_tokens=5),
    "all": SamplingParams(
        repetition_penalty=0.6, presence_penalty=-1.0, frequency_penalty=0.5, logit_bias={9: 2.0},
        min_tokens=9,
    ),
}  # fmt: skip


def expected(name, logits_V):
    """The same by the definitions, a token at a time."""
    rule, logits_V = RULES[name], logits_V.clone()
    if isinstance(rule, SamplingParams):
        for token in {*PROMPT, *OUTPUT}:
            positive = logits_V[token] > 0
            logits_V[token] *= 1 / rule.repetition_penalty if positive else rule.repetition_penalty
        for token in set(OUTPUT):
            logits_V[token] -= rule.presence_penalty
            logits_V[token] -= rule.frequency_penalty * OUTPUT.count(token)
        for token, bias in rule.logit_bias.items():
            logits_V[token] += bias
    if len(OUTPUT) < rule.min_tokens:
        logits_V[list(ENDS)] = -torch.inf
    return logits_V


@pytest.fixture
def slots_and_rows():
    slots = Slots(num_slots=len(RULES), max_positions=16, page_size=8)
    tokens = PROMPT + OUTPUT
    rows = [
        Row(
            request_id=name, slot=slot, index=0, start=0, tokens=tokens, page_start=0, pages=(),
            num_draws=1, prompt_targets=(),
        )
        for slot, name in enumerate(RULES)
    ]  # fmt: skip
    opened = [Opened(request_id=row.request_id, slot=row.slot, tokens=PROMPT) for row in rows]
    rules = {name: DrawRule(params=rule, seed=0, end_ids=ENDS) for name, rule in RULES.items()}
    batch = Batch(opened=tuple(opened), rows=tuple(rows))
    slots.update(batch, rules)
    return slots, rows


@pytest.mark.parametrize("seed", range(3))
def test_each_row_gets_its_own_adjustments(seed, slots_and_rows):
    slots, rows = slots_and_rows
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    rows = [rows[place] for place in order]
    logits_RV = torch.randn(len(rows), V)
    before_RV = logits_RV.clone()
    adjusted_RV = adjust(logits_RV, rows, slots)
    assert torch.equal(logits_RV, before_RV), "log-probabilities are of the model's own logits"
    for row, before_V, adjusted_V in zip(rows, before_RV, adjusted_RV, strict=True):
        torch.testing.assert_close(adjusted_V, expected(row.request_id, before_V))


def test_rows_that_want_nothing_cost_nothing(slots_and_rows):
    slots, rows = slots_and_rows
    logits_RV = torch.randn(1, V)
    assert adjust(logits_RV, rows[:1], slots) is logits_RV
