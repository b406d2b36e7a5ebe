"""Adjust: what requests put on the logits of a step: penalties, biases, ends held back, forms.

Dims: R rows that draw, V vocabulary, G rows that may not draw every token, W bytes of a token each
bit, A rows that are adjusted otherwise, C tokens of the adjusted rows, E
tokens with a bias.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alpage.ops import sampling
from alpage.serve.batch import Row
from alpage.serve.slots import Slots


def adjust(logits_RV: Tensor, rows: Sequence[Row], slots: Slots) -> Tensor:
    """Return the logits as the rows' requests want them changed; the same tensor if none does."""
    slot_R = np.array([row.slot for row in rows])
    row_A = np.flatnonzero(slots.is_adjusted_N[slot_R])
    row_G = [r for r, row in enumerate(rows) if row.allowed]
    if not len(row_A) and not row_G:
        return logits_RV
    logits_RV = logits_RV.to(torch.float32, copy=True)
    if row_G:
        _forbid(logits_RV, row_G, [rows[r].allowed for r in row_G])
    if not len(row_A):
        return logits_RV
    context_R = np.array([row.context for row in rows])
    row_P = row_A[slots.is_penalized_N[slot_R[row_A]]]
    if len(row_P):
        _penalize(logits_RV, row_P, slot_R, context_R, slots)
    _bias(logits_RV, row_A, slot_R, slots)
    _hold_ends(logits_RV, row_A, slot_R, context_R, slots)
    return logits_RV


def _forbid(logits_RV: Tensor, row_G: Sequence[int], allowed: Sequence[bytes]) -> None:
    """Give the tokens that are not allowed no chance."""
    device = logits_RV.device
    byte_GW = torch.from_numpy(np.stack([np.frombuffer(bits, np.uint8) for bits in allowed]))
    place_B = torch.arange(8, dtype=torch.uint8, device=device)
    bit_GV = (byte_GW.to(device)[:, :, None] >> place_B & 1).flatten(1)[:, : logits_RV.shape[1]]
    index_G = torch.tensor(row_G, device=device)
    logits_RV[index_G] = logits_RV[index_G].masked_fill(bit_GV == 0, -torch.inf)


def _penalize(
    logits_RV: Tensor,
    row_P: NDArray[np.int64],
    slot_R: NDArray[np.int64],
    context_R: NDArray[np.int64],
    slots: Slots,
) -> None:
    device = logits_RV.device
    context_P = context_R[row_P]
    row_C = np.repeat(row_P, context_P)
    slot_C = slot_R[row_C]
    place_C = np.arange(len(row_C)) - np.repeat(np.cumsum(context_P) - context_P, context_P)
    token_C = slots.token_NC[slot_C, place_C].astype(np.int64)
    sampling.penalize_repetition(
        logits_RV,
        torch.from_numpy(row_C).to(device),
        torch.from_numpy(token_C).to(device),
        torch.from_numpy(slots.repetition_penalty_N[slot_C]).to(device),
    )
    is_output_C = place_C >= slots.num_prompt_tokens_N[slot_C]
    sampling.penalize_occurrence(
        logits_RV,
        torch.from_numpy(row_C[is_output_C]).to(device),
        torch.from_numpy(token_C[is_output_C]).to(device),
        torch.from_numpy(slots.presence_penalty_N[slot_R]).to(device),
        torch.from_numpy(slots.frequency_penalty_N[slot_R]).to(device),
    )


def _bias(
    logits_RV: Tensor, row_A: NDArray[np.int64], slot_R: NDArray[np.int64], slots: Slots
) -> None:
    biases = [slots.biases[slot] for slot in slot_R[row_A]]
    row_E = np.repeat(row_A, [len(bias.tokens) for bias in biases])
    if len(row_E):
        token_E = np.concatenate([bias.tokens for bias in biases])
        value_E = np.concatenate([bias.values for bias in biases])
        where = torch.from_numpy(row_E), torch.from_numpy(token_E)
        logits_RV[where] += torch.from_numpy(value_E).to(logits_RV.device)


def _hold_ends(
    logits_RV: Tensor,
    row_A: NDArray[np.int64],
    slot_R: NDArray[np.int64],
    context_R: NDArray[np.int64],
    slots: Slots,
) -> None:
    """Give the tokens that end a request no chance before its `min_tokens` are out."""
    slot_A = slot_R[row_A]
    num_outputs_A = context_R[row_A] - slots.num_prompt_tokens_N[slot_A]
    is_held_A = num_outputs_A < slots.min_tokens_N[slot_A]
    held = [
        (row, token)
        for row, slot in zip(row_A[is_held_A], slot_A[is_held_A], strict=True)
        for token in slots.rule(slot).end_ids
    ]
    if held:
        row_E, token_E = torch.tensor(held).T
        logits_RV[row_E, token_E] = -torch.inf
