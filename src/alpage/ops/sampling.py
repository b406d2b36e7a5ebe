"""Sampling: from logits to tokens, for all rows of a step at once.

What a row draws depends on its own logits, parameters and key alone, so a request gets the same
tokens in any batch.

Dims: R rows, V vocabulary, N candidates, the likeliest first,
C tokens of all rows, E different ones of a row.
"""

from dataclasses import dataclass, fields
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alpage import native

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)
# Candidates that are sorted before a row's whole vocabulary is, if they do not decide it.
_NUM_CANDIDATES = 256
# Rows of the vocabulary that get their noise at a time.
_NOISE_ROWS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DrawParams:
    """How each row is drawn. See `SamplingParams` for the meanings."""

    temperature_R: Tensor  # float32, 0: the likeliest token
    top_k_R: Tensor  # int64, at least 1; V or more: all
    top_p_R: Tensor  # float32 in (0, 1]
    min_p_R: Tensor  # float32 in [0, 1]
    key_R: Tensor  # int64, see `keys`

    def to(self, device: torch.device) -> "DrawParams":
        """Return them on a device."""
        values = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return DrawParams(**values)


@final
@dataclass(frozen=True, slots=True)
class RankedLogprobs:
    """Log-probabilities of each row's token and of its likeliest tokens."""

    logprob_R: Tensor
    rank_R: Tensor  # 1: no token was likelier
    top_id_RN: Tensor
    top_logprob_RN: Tensor


def draw(logits_RV: Tensor, params: DrawParams) -> Tensor:
    """Return tokens_R, int64: the likeliest where the temperature is 0, else drawn at random.

    Of the tokens sorted by probability the first `top_k` are kept; of these the fewest whose share
    reaches `top_p`; of these the ones with at least `min_p` of the first one's probability
    (Holtzman et al. 2019, arXiv:1904.09751, for top-p). Among what is kept the largest sum of logit
    and Gumbel noise wins, which draws by probability; and a rounding of the logits changes the
    winner only if the two largest sums are as close as that (ADR 0008).

    Args:
        logits_RV: as the model gave them, or float32.
        params: one entry a row.
    """
    is_cut_R = (params.top_k_R < logits_RV.shape[-1]) | (params.top_p_R < 1) | (params.min_p_R > 0)
    is_cut_R &= params.temperature_R > 0
    token_R = _draw_uncut(logits_RV, params)
    if is_cut_R.any():
        rows = is_cut_R.nonzero()[:, 0]
        chosen = _select(params, rows)
        scaled_RV = logits_RV[rows].float() / chosen.temperature_R[:, None]
        token_R[rows] = _draw_cut(scaled_RV, chosen)
    return token_R


def likeliest(logits_RV: Tensor) -> Tensor:
    """Return tokens_R, int64: of each row the likeliest, the first of equal ones."""
    if not _is_ours(logits_RV):
        return logits_RV.float().argmax(-1)
    zero_R = torch.zeros(len(logits_RV))
    return native.draw(logits_RV, zero_R, zero_R.long())


def _draw_uncut(logits_RV: Tensor, params: DrawParams) -> Tensor:
    """Draw as if nothing was cut, by our kernels where these serve."""
    if _is_ours(logits_RV):
        return native.draw(logits_RV, params.temperature_R, params.key_R)
    logits_RV = logits_RV.float()
    token_R = logits_RV.argmax(-1)
    rows = (params.temperature_R > 0).nonzero()[:, 0]
    if len(rows):
        chosen = _select(params, rows)
        token_R[rows] = _draw_whole(logits_RV[rows] / chosen.temperature_R[:, None], chosen)
    return token_R


def _draw_whole(logits_RV: Tensor, params: DrawParams) -> Tensor:
    """Draw from the whole vocabulary, a few rows at a time so that the noise stays in cache."""
    id_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    logits, keys = (torch.split(x, _NOISE_ROWS) for x in (logits_RV, params.key_R))
    noisy = (part + gumbel(key_R, id_V) for part, key_R in zip(logits, keys, strict=True))
    return torch.cat([part_RV.argmax(-1) for part_RV in noisy])


def _draw_cut(logits_RV: Tensor, params: DrawParams) -> Tensor:
    """Cut first, looking at few candidates unless a row's cut lies behind them."""
    vocab_size = logits_RV.shape[-1]
    num_candidates = min(_NUM_CANDIDATES, vocab_size)
    token_R, is_decided_R = _draw_candidates(logits_RV, params, num_candidates)
    rows = (~is_decided_R).nonzero()[:, 0]
    if len(rows):
        token_R[rows], _ = _draw_candidates(logits_RV[rows], _select(params, rows), vocab_size)
    return token_R


def _draw_candidates(
    logits_RV: Tensor, params: DrawParams, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Return tokens_R and whether no candidate behind the ones looked at could have been kept."""
    logit_RN, id_RN = logits_RV.topk(num_candidates)
    # Shares of the whole vocabulary; of the top k where the cut by rank comes first.
    total_R = log_sum_exp(logits_RV)
    rank_N = torch.arange(num_candidates, device=logits_RV.device)
    in_top_k_RN = rank_N < params.top_k_R[:, None]
    share_RN = (logit_RN - total_R[:, None]).exp().double() * in_top_k_RN
    is_few_R = params.top_k_R <= num_candidates
    share_RN = torch.where(is_few_R[:, None], share_RN / share_RN.sum(-1, keepdim=True), share_RN)
    before_RN = share_RN.cumsum(-1) - share_RN
    keep_RN = in_top_k_RN & (before_RN < params.top_p_R[:, None])
    keep_RN &= share_RN >= share_RN[:, :1] * params.min_p_R[:, None]
    keep_RN[:, 0] = True
    noisy_RN = (logit_RN + gumbel(params.key_R, id_RN)).masked_fill(~keep_RN, -torch.inf)
    choice_R = noisy_RN.argmax(-1)
    # A top k that reaches behind the candidates needs the sum of the whole k for its shares.
    is_whole_k_R = params.top_k_R >= logits_RV.shape[-1]
    is_decided_R = is_few_R | (is_whole_k_R & ~keep_RN[:, -1])
    return id_RN.gather(1, choice_R[:, None])[:, 0], is_decided_R


def gumbel(key_R: Tensor, id_RN: Tensor) -> Tensor:
    """Return Gumbel noise_RN, float32, that depends on nothing but a row's key and a token's id.

    Args:
        key_R: int64, see `keys`.
        id_RN: int64 token ids, of each row or [N] for all rows.
    """
    # 32 bits of each key scale the token's hash, 31 shift it; both are mixed once more.
    factor_R1 = ((key_R & 0xFFFFFFFF) | 1).to(torch.int32)[:, None]
    offset_R1 = (key_R >> 32).to(torch.int32)[:, None]
    hash_RN = _mix32(_mix32(id_RN.to(torch.int32) + 1) * factor_R1 + offset_R1)
    # 23 bits and a half: a uniform number that float32 holds exactly, never 0 or 1.
    uniform_RN = (((hash_RN >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return -(-uniform_RN.log()).log()


def _mix32(x: Tensor) -> Tensor:
    """Mix 32 bits so that every bit depends on every other (Appleby 2008, MurmurHash3)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * -0x7A143595
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -0x3D4D51CB
    return x ^ ((x >> 16) & 0xFFFF)


def _select(params: DrawParams, rows: Tensor) -> DrawParams:
    return DrawParams(
        temperature_R=params.temperature_R[rows],
        top_k_R=params.top_k_R[rows],
        top_p_R=params.top_p_R[rows],
        min_p_R=params.min_p_R[rows],
        key_R=params.key_R[rows],
    )


def rank_logprobs(logits_RV: Tensor, token_R: Tensor, num_top: int) -> RankedLogprobs:
    """Return natural log-probabilities of given tokens and of the `num_top` likeliest ones.

    Args:
        logits_RV: as the model gave them.
        token_R: a token of each row.
        num_top: N, may be 0.
    """
    total_R = log_sum_exp(logits_RV)
    logit_R1 = logits_RV.gather(1, token_R[:, None])
    top_logit_RN, top_id_RN = logits_RV.topk(num_top)
    return RankedLogprobs(
        logit_R1[:, 0].float() - total_R,
        (logits_RV > logit_R1).sum(-1) + 1,
        top_id_RN,
        top_logit_RN.float() - total_R[:, None],
    )


def log_sum_exp(logits_RV: Tensor) -> Tensor:
    """Return total_R, float32: what a row's logits exceed its log-probabilities by."""
    if _is_ours(logits_RV):
        return native.log_sum_exp(logits_RV)
    return logits_RV.float().logsumexp(-1)


def _is_ours(logits_RV: Tensor) -> bool:
    """Whether our kernels serve."""
    is_known = logits_RV.device.type == "cpu" and logits_RV.dtype in _KERNEL_DTYPES
    return is_known and logits_RV.stride(1) == 1 and native.load() is not None


def penalize_repetition(
    logits_RV: Tensor, row_C: Tensor, token_C: Tensor, penalty_C: Tensor
) -> None:
    """Divide positive and multiply negative logits of tokens seen before, in place.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1.

    Args:
        logits_RV: float32, changed.
        row_C: int64, the row of each token.
        token_C: int64, the tokens of prompt and output; however often one occurs, it counts once.
        penalty_C: above 0, the same for all tokens of a row; 1 changes nothing.
    """
    logit_C = logits_RV[row_C, token_C]
    logits_RV[row_C, token_C] = torch.where(logit_C > 0, logit_C / penalty_C, logit_C * penalty_C)


def penalize_occurrence(
    logits_RV: Tensor, row_C: Tensor, token_C: Tensor, presence_R: Tensor, frequency_R: Tensor
) -> None:
    """Subtract a penalty once for a token that was output, and one for each time it was, in place.

    Args:
        logits_RV: float32, changed.
        row_C: int64, the row of each token.
        token_C: int64, the tokens of the outputs.
        presence_R: subtracted once.
        frequency_R: subtracted for each time.
    """
    vocab_size = logits_RV.shape[-1]
    entry_E, count_E = torch.unique(row_C * vocab_size + token_C, return_counts=True)
    row_E = entry_E // vocab_size
    penalty_E = presence_R[row_E] + frequency_R[row_E] * count_E
    logits_RV[row_E, entry_E % vocab_size] -= penalty_E


def keys(
    seed: NDArray[np.uint64], index: NDArray[np.uint64], position: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return 63 random bits that depend on nothing but their seed, index and position.

    A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
    has no state to keep with a request; the mixing is SplitMix64's (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(_mix(seed) + index) + position)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
