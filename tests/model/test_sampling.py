"""Drawing against transformers' warpers: the same distribution, not just the same support."""

import itertools

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alpage.ops import sampling

NUM_DRAWS = 20_000
V = 1000


def make_keys(num_rows):
    ones = np.ones(num_rows, np.uint64)
    return torch.from_numpy(sampling.keys(ones, ones, np.arange(num_rows, dtype=np.uint64)))


def draw(logits_V, *, temperature=1.0, top_k=V, top_p=1.0, min_p=0.0):
    """Tokens of one row of logits, drawn with the keys of so many positions."""
    R = NUM_DRAWS
    params = sampling.DrawParams(
        temperature_R=torch.full((R,), temperature),
        top_k_R=torch.full((R,), top_k),
        top_p_R=torch.full((R,), top_p),
        min_p_R=torch.full((R,), min_p),
        key_R=make_keys(R),
    )
    return sampling.draw(logits_V.expand(R, -1), params)


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 400},  # more than the candidates that are looked at first
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 0.999, "temperature": 4.0},  # decided only behind the first candidates
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frequencies_equal_the_warped_distribution(case):
    torch.manual_seed(0)
    logits_V = torch.randn(V) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(case.get("temperature", 1.0))])
    if "top_k" in case:
        warpers.append(TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        warpers.append(TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        warpers.append(MinPLogitsWarper(case["min_p"]))
    expected_V = warpers(torch.zeros(1, 1, dtype=torch.long), logits_V[None])[0].softmax(-1)
    found_V = torch.bincount(draw(logits_V, **case), minlength=V) / NUM_DRAWS
    assert set(found_V.nonzero()[:, 0].tolist()) <= set(expected_V.nonzero()[:, 0].tolist())
    # A share of p is met to within five standard deviations, sqrt(p (1 - p) / draws).
    deviation_V = (expected_V * (1 - expected_V) / NUM_DRAWS).sqrt() + 1 / NUM_DRAWS
    assert ((found_V - expected_V).abs() < 5 * deviation_V).all()


def test_zero_temperature_takes_the_first_of_the_likeliest():
    logits_V = torch.zeros(V)
    logits_V[[5, 900]] = 3.0
    assert set(draw(logits_V, temperature=0.0).tolist()) == {5}


def test_a_row_draws_the_same_in_any_company():
    torch.manual_seed(0)
    logits_RV = torch.randn(12, V) * 3
    params = sampling.DrawParams(
        temperature_R=torch.tensor([0.0, 1.0, 0.7] * 4),
        top_k_R=torch.tensor([V, V, V, 5] * 3),
        top_p_R=torch.tensor([1.0, 1.0, 0.9, 1.0, 0.99, 1.0] * 2),
        min_p_R=torch.tensor([0.0, 0.05] * 6),
        key_R=make_keys(12),
    )
    together = sampling.draw(logits_RV, params)
    for r in range(12):
        alone = sampling.draw(logits_RV[r : r + 1], sampling._select(params, torch.tensor([r])))
        assert alone.item() == together[r].item()


def test_repetition_penalty_equals_transformers():
    torch.manual_seed(0)
    logits_RV, seen_RC = torch.randn(3, V), torch.randint(0, V, (3, 50))
    penalties = [1.3, 1.0, 0.7]
    expected_RV = torch.cat([
        RepetitionPenaltyLogitsProcessor(penalty)(seen_RC[r : r + 1], logits_RV[r : r + 1].clone())
        for r, penalty in enumerate(penalties)
    ])  # fmt: skip
    row_C = torch.arange(3).repeat_interleave(50)
    penalty_C = torch.tensor(penalties).repeat_interleave(50)
    sampling.penalize_repetition(logits_RV, row_C, seen_RC.flatten(), penalty_C)
    assert torch.equal(logits_RV, expected_RV)


def test_presence_and_frequency_penalties_stay_in_their_row():
    logits_RV = torch.zeros(3, 10)
    row_C, token_C = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([3, 7, 3, 3, 3])
    presence_R, frequency_R = torch.tensor([0.5, 9.0, 1.0]), torch.tensor([0.25, 9.0, 0.0])
    sampling.penalize_occurrence(logits_RV, row_C, token_C, presence_R, frequency_R)
    assert logits_RV[0].tolist() == [0, 0, 0, -1.25, 0, 0, 0, -0.75, 0, 0]
    assert logits_RV[1].tolist() == [0] * 10
    assert logits_RV[2].tolist() == [0, 0, 0, -1, 0, 0, 0, 0, 0, 0]


def test_noise_is_gumbel_in_every_direction():
    """Over tokens, positions, continuations and seeds, alone and from one to the next."""
    num = 200_000
    ones, counts = np.ones(num, np.uint64), np.arange(num, dtype=np.uint64)
    token = torch.tensor([7])
    one_key = torch.from_numpy(sampling.keys(ones[:1], ones[:1], ones[:1]))
    streams = [
        sampling.gumbel(one_key, torch.arange(num))[0],
        *(
            sampling.gumbel(torch.from_numpy(sampling.keys(*key)), token)[:, 0]
            for key in ((ones, ones, counts), (ones, counts, ones), (counts, ones, ones))
        ),
    ]
    for stream in streams:
        uniform = (-(-stream.double()).exp()).exp().numpy()
        histogram, _ = np.histogram(uniform, bins=100, range=(0, 1))
        # Chi-squared with 99 degrees of freedom exceeds 148 once in a thousand times.
        assert ((histogram - num / 100) ** 2 / (num / 100)).sum() < 148
        assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.01
    for one, other in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(one.numpy(), other.numpy())[0, 1]) < 0.01


def test_rounding_of_the_logits_hardly_ever_changes_a_draw():
    torch.manual_seed(0)
    logits_V = torch.randn(V) * 2
    shaken_V = logits_V + 1e-5 * torch.randn(V)
    assert (draw(logits_V) != draw(shaken_V)).sum() <= 5


def test_logprobs_and_ranks():
    torch.manual_seed(0)
    logits_RV = torch.randn(5, V)
    token_R = torch.randint(0, V, (5,))
    ranked = sampling.rank_logprobs(logits_RV, token_R, 4)
    expected_RV = logits_RV.log_softmax(-1)
    order_RV = expected_RV.argsort(-1, descending=True)
    for r in range(5):
        assert ranked.logprob_R[r] == pytest.approx(expected_RV[r, token_R[r]].item(), abs=1e-5)
        assert order_RV[r, ranked.rank_R[r] - 1] == token_R[r]
        assert ranked.top_id_RN[r].tolist() == order_RV[r, :4].tolist()
