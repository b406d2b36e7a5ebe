"""Layers: the pieces that every architecture is made of.

Dims: D model, F features out; `...` any leading dims: T for a flat serving step, B L for training.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class Linear(nn.Module):
    """x_...D -> x_...F. The weight is F rows of D, unset until it is loaded."""

    def __init__(self, num_in: int, num_out: int, *, has_bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(x, self.weight, self.bias)


@final
class Embedding(nn.Module):
    """tokens_... -> x_...D."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up."""
        return F.embedding(tokens, self.weight)


@final
class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias of the last dim (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float, *, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if has_bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@final
class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
