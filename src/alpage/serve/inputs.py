"""Inputs: a step's rows as the tensors that the model reads, in memory that stays.

Dims: T new tokens of all rows, B rows, P pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alpage.ops.kv import PagedStep
from alpage.serve.batch import Row
from alpage.serve.home import Home
from alpage.serve.slots import Slots


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model runs over; the next step overwrites it.

    Attributes:
        token_T: of all rows, and zeros behind them.
        position_T: likewise.
        step: the rows that are at home here.
        num_tokens: that each home has; zeros count to the last.
    """

    token_T: Tensor
    position_T: Tensor
    step: PagedStep
    num_tokens: list[int]


@final
class StepInputs:
    """The tensors of one step after the other, each in the memory of the last.

    Args:
        page_size: tokens in a page.
        device: where the model runs.
        home: whose pages are here.
    """

    def __init__(self, page_size: int, device: torch.device, home: Home) -> None:
        self._page_size = page_size
        self._home = home
        self._token_T = _StepTensor(torch.int64, device)
        self._position_T = _StepTensor(torch.int64, device)
        self._slot_T = _StepTensor(torch.int64, device)
        self._query_start_B1 = _StepTensor(torch.int32, device)
        self._context_B = _StepTensor(torch.int32, device)
        self._table_BP = _StepTensor(torch.int32, device)

    def fill(self, rows: Sequence[Row], slots: Slots, multiple: int) -> Inputs:
        """Return the tensors of a step.

        Args:
            rows: in the order of their homes; `slots` has taken them in.
            slots: what is known of them.
            multiple: zeros are added until the tokens are one of this.
        """
        slot_B = np.array([row.slot for row in rows])
        start_B = np.array([row.start for row in rows])
        num_queries_B = np.array([len(row.tokens) for row in rows])
        end_B = np.cumsum(num_queries_B)
        num_tokens = int(end_B[-1])
        num_padded = -(-num_tokens // multiple) * multiple

        # Position of a token: its row's start, plus its place behind the row's first token.
        slot_T = np.repeat(slot_B, num_queries_B)
        position_T = self._position_T.host(num_padded)
        position_T[num_tokens:] = 0
        offset_B = start_B - end_B + num_queries_B
        np.add(
            np.arange(num_tokens), np.repeat(offset_B, num_queries_B), out=position_T[:num_tokens]
        )
        token_T = self._token_T.host(num_padded)
        token_T[num_tokens:] = 0
        token_T[:num_tokens] = slots.token_NC[slot_T, position_T[:num_tokens]]

        bounds = self._home.bounds(rows, slots)
        num_of_homes = [int(num_queries_B[first:end].sum()) for first, end in bounds]
        first, end = bounds[self._home.number]
        start = sum(num_of_homes[: self._home.number])
        here = slice(start, start + num_of_homes[self._home.number])
        step = self._step(
            slots.table_NP[slot_B[first:end]],
            num_queries_B[first:end],
            start_B[first:end] + num_queries_B[first:end],
            position_T[here],
        )
        num_of_homes[-1] += num_padded - num_tokens
        return Inputs(self._token_T.on_device(), self._position_T.on_device(), step, num_of_homes)

    def _step(
        self,
        table_BP: NDArray[Any],
        num_queries_B: NDArray[Any],
        context_B: NDArray[Any],
        position_T: NDArray[Any],
    ) -> PagedStep:
        """Return what attention needs of the rows that are at home here."""
        num_rows = len(num_queries_B)
        query_start_B1 = self._query_start_B1.host(num_rows + 1)
        query_start_B1[0] = 0
        np.cumsum(num_queries_B, out=query_start_B1[1:])
        self._context_B.host(num_rows)[:] = context_B
        num_pages = -(-int(context_B.max(initial=0)) // self._page_size)
        table_here_BP = self._table_BP.host(num_rows, num_pages)
        np.remainder(table_BP[:, :num_pages], self._home.num_pages, out=table_here_BP)
        row_T = np.repeat(np.arange(num_rows), num_queries_B)
        page_T, place_T = np.divmod(position_T, self._page_size)
        slot_T = self._slot_T.host(len(position_T))
        np.multiply(table_here_BP[row_T, page_T], self._page_size, out=slot_T)
        slot_T += place_T
        return PagedStep(
            num_queries=num_queries_B.tolist(),
            contexts=context_B.tolist(),
            query_start_B1=self._query_start_B1.on_device(),
            context_B=self._context_B.on_device(),
            table_BP=self._table_BP.on_device(),
            slot_T=self._slot_T.on_device(),
        )


@final
class _StepTensor:
    """A tensor filled on the host and read on the device, which grows where a step needs more."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._is_on_host = device.type == "cpu"
        self._memory = torch.empty(0, dtype=dtype)
        self._device_memory = torch.empty(0, dtype=dtype, device=device)
        self._here(())

    def host(self, *sizes: int) -> NDArray[Any]:
        """Return this step's array, to be filled."""
        # Steps that decode have the same sizes, one after the other.
        if sizes != self._sizes:
            self._here(sizes)
        return self._array

    def on_device(self) -> Tensor:
        """Return what was filled in, where the model reads it."""
        if self._is_on_host:
            return self._tensor
        part = self._device_memory[: self._tensor.numel()].view(self._sizes)
        return part.copy_(self._tensor, non_blocking=True)

    def _here(self, sizes: tuple[int, ...]) -> None:
        num_elements = prod(sizes)
        if num_elements > len(self._memory):
            # To the next power of two, so that steps of growing contexts seldom need new memory.
            capacity, dtype = 1 << (num_elements - 1).bit_length(), self._memory.dtype
            self._memory = torch.zeros(capacity, dtype=dtype, pin_memory=not self._is_on_host)
            self._device_memory = torch.zeros_like(self._memory, device=self._device_memory.device)
        self._sizes = sizes
        self._tensor = self._memory[:num_elements].view(sizes)
        self._array: NDArray[Any] = self._tensor.numpy()
