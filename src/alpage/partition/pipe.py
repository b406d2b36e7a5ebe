"""Pipe: activations on their way from one stage of a pipeline to the next.

Stages have meshes of the same axes, so that every rank sends to the one rank of the next stage that
has its place. The ranks of the last stage come first, for the first rank of all draws the tokens.
"""

from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor


@final
class Pipe:
    """One rank's ends.

    Args:
        dtype: of activations.
        device: where they are.
        stage: number of this one.
        num_stages: that there are.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, *, stage: int = 0, num_stages: int = 1
    ) -> None:
        self.num_stages = num_stages
        self.is_first = stage == 0
        self.is_last = stage == num_stages - 1
        self._dtype = dtype
        self._device = device
        self._under_way: list[tuple[Any, Tensor]] = []

    def send(self, x: Tensor) -> None:
        """Send to the next stage, without waiting."""
        x = x.contiguous()
        num_ranks = dist.get_world_size() // self.num_stages
        self._under_way.append((dist.isend(x, dist.get_rank() - num_ranks), x))

    def receive(self, *sizes: int) -> Tensor:
        """Return what the stage before sends, once it is here."""
        x = torch.empty(sizes, dtype=self._dtype, device=self._device)
        num_ranks = dist.get_world_size() // self.num_stages
        dist.recv(x, dist.get_rank() + num_ranks)
        return x

    def flush(self) -> None:
        """Wait until everything has been taken."""
        for request, _ in self._under_way:
            request.wait()
        self._under_way.clear()
