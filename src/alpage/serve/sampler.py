"""Sampler: what the rows of a step draw, by the rules of their requests.

Dims: R rows that draw, V vocabulary, D draws (a row may draw several).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alpage.ops import sampling
from alpage.serve.adjust import adjust
from alpage.serve.batch import Row
from alpage.serve.outputs import Logprob, TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.slots import DrawRule, Slots


def sample(logits_RV: Tensor, rows: Sequence[Row], slots: Slots) -> list[RowResult]:
    """Return each row's draws.

    Args:
        logits_RV: as the model gave them, behind the last token of each row.
        rows: R rows with `num_draws` > 0.
        slots: the rows' state.
    """
    adjusted_RV = adjust(logits_RV, rows, slots)
    rules = [slots.rule(row.slot) for row in rows]
    drawing = [r for r, rule in enumerate(rules) if isinstance(rule.params, SamplingParams)]
    results: dict[int, RowResult] = {}
    if drawing:
        tokens = _draw(adjusted_RV, drawing, rows, slots)
        logprobs = _logprobs(logits_RV, tokens, rules)
        for r in drawing:
            results[r] = RowResult(tokens=tuple(tokens[r]), logprobs=tuple(logprobs.get(r, ())))
    searching: dict[int, list[int]] = {}
    for r, rule in enumerate(rules):
        if r not in results:
            searching.setdefault(rule.num_candidates, []).append(r)
    for num_candidates, some in searching.items():
        results |= _candidates(logits_RV, adjusted_RV, some, num_candidates)
    return [results[r] for r in range(len(rows))]


def to_logprobs(
    ranked: sampling.RankedLogprobs, tokens: Sequence[int], nums_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return for each row its token's log-probability and those of the likeliest it wants."""
    logprobs, ranks = ranked.logprob_R.tolist(), ranked.rank_R.tolist()
    top_ids, top_logprobs = ranked.top_id_RN.tolist(), ranked.top_logprob_RN.tolist()
    entries: list[TokenLogprobs] = []
    for r, num_top in enumerate(nums_top):
        entry = {tokens[r]: Logprob(logprobs[r], ranks[r])}
        for place in range(num_top):
            entry.setdefault(top_ids[r][place], Logprob(top_logprobs[r][place], place + 1))
        entries.append(entry)
    return entries


def _draw(
    logits_RV: Tensor, drawing: Sequence[int], rows: Sequence[Row], slots: Slots
) -> dict[int, list[int]]:
    """Return the tokens of each drawing row; a prompt's row draws for all continuations."""
    row_D, index_D = np.array(
        [(r, rows[r].index + draw) for r in drawing for draw in range(rows[r].num_draws)]
    ).T
    slot_D = np.array([rows[r].slot for r in row_D])
    is_each_once = len(row_D) == len(drawing) == len(rows)
    logits_DV = logits_RV if is_each_once else logits_RV[row_D]
    if slots.temperature_N[slot_D].any():
        position_D = np.array([rows[r].context for r in row_D])
        token_D = sampling.draw(
            logits_DV,
            _draw_params(slots, slot_D, index_D, position_D).to(logits_RV.device),
        )
    else:
        token_D = sampling.likeliest(logits_DV)
    tokens: dict[int, list[int]] = {r: [] for r in drawing}
    for r, token in zip(row_D, token_D.tolist(), strict=True):
        tokens[r].append(token)
    return tokens


def _draw_params(
    slots: Slots,
    slot_D: NDArray[np.int64],
    index_D: NDArray[np.int64],
    position_D: NDArray[np.int64],
) -> sampling.DrawParams:
    seed_D = slots.seed_N[slot_D]
    key_D = sampling.keys(seed_D, index_D.astype(np.uint64), position_D.astype(np.uint64))
    return sampling.DrawParams(
        temperature_R=torch.from_numpy(slots.temperature_N[slot_D]),
        top_k_R=torch.from_numpy(slots.top_k_N[slot_D]),
        top_p_R=torch.from_numpy(slots.top_p_N[slot_D]),
        min_p_R=torch.from_numpy(slots.min_p_N[slot_D]),
        key_R=torch.from_numpy(key_D),
    )


def _candidates(
    logits_RV: Tensor, adjusted_RV: Tensor, rows: Sequence[int], num_candidates: int
) -> dict[int, RowResult]:
    """Return the likeliest tokens of rows that search, and their log-probabilities."""
    if len(rows) < len(logits_RV):
        logits_RV, adjusted_RV = logits_RV[rows], adjusted_RV[rows]
    total_R1 = sampling.log_sum_exp(logits_RV)[:, None]
    top = adjusted_RV.topk(min(num_candidates, adjusted_RV.shape[-1]))
    pairs = zip(top.indices.tolist(), (top.values.float() - total_R1).tolist(), strict=True)
    return {
        r: RowResult(candidates=tuple(zip(ids, scores, strict=True)))
        for r, (ids, scores) in zip(rows, pairs, strict=True)
    }


def _logprobs(
    logits_RV: Tensor, tokens: dict[int, list[int]], rules: Sequence[DrawRule]
) -> dict[int, list[TokenLogprobs]]:
    """Return log-probabilities for the rows that want them, or rank their draws by them."""
    nums_top: dict[int, int] = {}
    for r in tokens:
        params = rules[r].params
        assert isinstance(params, SamplingParams)
        if params.logprobs is not None:
            nums_top[r] = params.logprobs
        elif params.num_sequences > params.n:
            nums_top[r] = 0
    if not nums_top:
        return {}
    pairs = [(r, token) for r in nums_top for token in tokens[r]]
    row_D, token_D = (torch.tensor(x, device=logits_RV.device) for x in zip(*pairs, strict=True))
    ranked = sampling.rank_logprobs(logits_RV[row_D], token_D, max(nums_top.values()))
    entries = to_logprobs(ranked, [token for _, token in pairs], [nums_top[r] for r, _ in pairs])
    by_row: dict[int, list[TokenLogprobs]] = {}
    for (r, _), entry in zip(pairs, entries, strict=True):
        by_row.setdefault(r, []).append(entry)
    return by_row
