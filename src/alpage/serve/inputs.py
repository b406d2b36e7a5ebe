"""Inputs: a step's rows as the tensors that the model reads.

Dims: T new tokens of all rows, B rows, P pages.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from alpage.ops.kv import PagedStep
from alpage.serve.batch import Batch
from alpage.serve.slots import Slots


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model runs over."""

    token_T: Tensor
    position_T: Tensor
    step: PagedStep


def to_inputs(batch: Batch, slots: Slots, page_size: int, device: torch.device) -> Inputs:
    """Return the tensors of a step whose rows `slots` has taken in."""
    slot_B = np.array([row.slot for row in batch.rows])
    start_B = np.array([row.start for row in batch.rows])
    num_queries = [len(row.tokens) for row in batch.rows]
    query_start_B1 = np.zeros(len(num_queries) + 1, np.int32)
    np.cumsum(num_queries, out=query_start_B1[1:])
    # Position of a token: its row's start, plus its place behind the row's first token.
    row_T = np.repeat(np.arange(len(num_queries)), num_queries)
    position_T = start_B[row_T] + np.arange(len(row_T)) - query_start_B1[row_T]
    slot_T = slot_B[row_T]
    contexts = start_B + num_queries
    num_pages = -(-int(contexts.max()) // page_size)
    table_BP = slots.table_NP[slot_B, :num_pages]
    page_T = slots.table_NP[slot_T, position_T // page_size].astype(np.int64)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Inputs(
        on_device(slots.token_NC[slot_T, position_T].astype(np.int64)),
        on_device(position_T),
        PagedStep(
            num_queries=num_queries,
            contexts=contexts.tolist(),
            query_start_B1=on_device(query_start_B1),
            context_B=on_device(contexts.astype(np.int32)),
            table_BP=on_device(table_BP),
            slot_T=on_device(page_T * page_size + position_T % page_size),
        ),
    )
