"""Inputs: a step's rows as the tensors that the model reads, in memory that stays.

Dims: T new tokens of all rows, B rows, P pages.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alpage.ops.kv import PagedStep
from alpage.serve.batch import Batch
from alpage.serve.slots import Slots


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model runs over; the next step overwrites it."""

    token_T: Tensor
    position_T: Tensor
    step: PagedStep


@final
class StepInputs:
    """The tensors of one step after the other, each in the memory of the last.

    Args:
        page_size: tokens in a page.
        device: where the model runs.
    """

    def __init__(self, page_size: int, device: torch.device) -> None:
        self._page_size = page_size
        self._token_T = _StepTensor(torch.int64, device)
        self._position_T = _StepTensor(torch.int64, device)
        self._slot_T = _StepTensor(torch.int64, device)
        self._query_start_B1 = _StepTensor(torch.int32, device)
        self._context_B = _StepTensor(torch.int32, device)
        self._table_BP = _StepTensor(torch.int32, device)

    def fill(self, batch: Batch, slots: Slots) -> Inputs:
        """Return the tensors of a step whose rows `slots` has taken in."""
        slot_B = np.array([row.slot for row in batch.rows])
        start_B = np.array([row.start for row in batch.rows])
        num_queries = [len(row.tokens) for row in batch.rows]
        query_start_B1 = self._query_start_B1.host(len(num_queries) + 1)
        query_start_B1[0] = 0
        np.cumsum(num_queries, out=query_start_B1[1:])
        context_B = self._context_B.host(len(num_queries))
        np.add(start_B, num_queries, out=context_B, casting="same_kind")
        num_pages = -(-int(context_B.max()) // self._page_size)
        table_BP = self._table_BP.host(len(num_queries), num_pages)
        np.take(slots.table_NP[:, :num_pages], slot_B, axis=0, out=table_BP, mode="clip")

        # Position of a token: its row's start, plus its place behind the row's first token.
        place_T = np.arange(query_start_B1[-1])
        slot_T = np.repeat(slot_B, num_queries)
        position_T = self._position_T.host(len(place_T))
        np.add(place_T, np.repeat(start_B - query_start_B1[:-1], num_queries), out=position_T)
        self._token_T.host(len(place_T))[:] = slots.token_NC[slot_T, position_T]
        page_T, offset_T = np.divmod(position_T, self._page_size)
        pool_slot_T = self._slot_T.host(len(place_T))
        np.multiply(slots.table_NP[slot_T, page_T], self._page_size, out=pool_slot_T)
        pool_slot_T += offset_T

        return Inputs(
            self._token_T.on_device(),
            self._position_T.on_device(),
            PagedStep(
                num_queries=num_queries,
                contexts=context_B.tolist(),
                query_start_B1=self._query_start_B1.on_device(),
                context_B=self._context_B.on_device(),
                table_BP=self._table_BP.on_device(),
                slot_T=self._slot_T.on_device(),
            ),
        )


@final
class _StepTensor:
    """A tensor filled on the host and read on the device, which grows where a step needs more."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._is_on_host = device.type == "cpu"
        self._host = torch.empty(0, dtype=dtype)
        self._device = torch.empty(0, dtype=dtype, device=device)
        self._sizes: tuple[int, ...] = (0,)

    def host(self, *sizes: int) -> NDArray[Any]:
        """Return this step's array, to be filled."""
        self._sizes = sizes
        num_elements = int(np.prod(sizes))
        if num_elements > len(self._host):
            # To the next power of two, so that steps of growing contexts seldom need new memory.
            capacity, dtype = 1 << (num_elements - 1).bit_length(), self._host.dtype
            self._host = torch.zeros(capacity, dtype=dtype, pin_memory=not self._is_on_host)
            self._device = torch.zeros_like(self._host, device=self._device.device)
        return self._host[:num_elements].view(sizes).numpy()

    def on_device(self) -> Tensor:
        """Return what was filled in, where the model reads it."""
        num_elements = int(np.prod(self._sizes))
        if self._is_on_host:
            return self._host[:num_elements].view(self._sizes)
        part = self._device[:num_elements]
        return part.copy_(self._host[:num_elements], non_blocking=True).view(self._sizes)
