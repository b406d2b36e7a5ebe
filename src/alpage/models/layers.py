"""Layers: the pieces that every architecture is made of.

Each says what its weight is made of (`Parts`), so that a sharder can cut it.

Dims: D model, F features out; `...` any leading dims: T for a flat serving step, B L for training.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpage.models.quantize import Int4Matrix, Quantization, int8_groups, scaled_product
from alpage.ops.linear import PackedWeight, is_packable, linear, packed, packed_groups, packed_int4
from alpage.ops.rows import rms_norm
from alpage.partition import REPLICATED, Parts, Sharder
from alpage.workload import ModelShape


class Layer(nn.Module):
    """What has a weight, and says what that is made of (see `alpage.partition.Sharder.cut`).

    Attributes:
        weight: [..., rows, columns], or a vector that has `columns` alone.
        bias: along the rows of a matrix, or like the vector; None: there is none.
        packed: the matrix as our kernels read it, once `pack` was called; None: PyTorch multiplies.
        scale: that every row of a matrix of whole numbers is multiplied with; None: of floats.
        rows: parts of its rows; none of a vector.
        columns: parts of its columns.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: nn.Parameter | None
    rows: Parts
    columns: Parts

    def __init__(self) -> None:
        super().__init__()
        self.scale = None
        self.packed: PackedWeight | None = None

    @property
    def is_quantizable(self) -> bool:
        """Whether whole numbers do: in matrices whose every output is a sum over many inputs."""
        return False

    def take(self, matrix: Int4Matrix) -> None:
        """Multiply with a matrix in 4 bits instead of the weight, by kernels of ours."""
        self.packed = packed_int4(matrix.number_FD, matrix.scale_FB, matrix.minimum_FB)
        self.weight = _nothing(self.weight.dtype)

    def pack(self, quantization: Quantization | None) -> None:
        """Prepare for many products, where kernels of ours make them, with whole weights only.

        Args:
            quantization: of the model; None: its matrices are of floats.
        """


@final
class Linear(Layer):
    """x_...D -> x_...F. The weight is F rows of D, unset until it is loaded.

    Args:
        columns: parts of D.
        rows: parts of F.
        has_bias: whether a vector is added.
        sharder: gathers the weight, if it is stored in more parts than it is used in.
    """

    def __init__(
        self,
        columns: Parts,
        rows: Parts,
        sharder: Sharder = REPLICATED,
        *,
        has_bias: bool = False,
    ) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        num_in, num_out = (sum(size for _, size in parts) for parts in (columns, rows))
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if has_bias else None
        self._sharder = sharder

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if self.packed is not None:
            return linear(x, self.packed, self.bias)
        weight_FD = self._sharder.weight(self.weight, self.rows, self.columns)
        if self.scale is None:
            return F.linear(x, weight_FD, self.bias)
        out = scaled_product(x, weight_FD, self.scale)
        return out if self.bias is None else out + self.bias

    @property
    def is_quantizable(self) -> bool:
        """All but a router: its few outputs choose."""
        return self.rows[0][0] != "-"

    def pack(self, quantization: Quantization | None) -> None:  # noqa: ARG002
        """See `Layer`. The matrix itself is gone then."""
        if self.packed is None:
            self.packed = packed(self.weight, self.scale)
        if self.packed is not None:
            self.weight = _nothing(self.weight.dtype)
            if self.bias is not None:
                self.bias = nn.Parameter(self.bias.float(), requires_grad=False)


@final
class Embedding(Layer):
    """tokens_... -> x_...D."""

    def __init__(self, vocab_size: int, dim: int, sharder: Sharder = REPLICATED) -> None:
        super().__init__()
        self.rows, self.columns = (("V", vocab_size),), (("-", dim),)
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.bias = None
        self._sharder = sharder

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up."""
        return self._sharder.embed(tokens, self.weight)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits_...V, where the vocabulary projection is this embedding."""
        return _logits(x, self, self._sharder)

    def pack(self, quantization: Quantization | None) -> None:
        """See `Layer`. Rows are looked up in the matrix itself, so it stays."""
        self.packed = _packed_head(self.weight, quantization)


@final
class Head(Layer):
    """x_...D -> logits_...V, of a vocabulary projection of its own."""

    def __init__(self, shape: ModelShape, sharder: Sharder = REPLICATED) -> None:
        super().__init__()
        self.rows, self.columns = (("V", shape.vocab_size),), (("-", shape.d_model),)
        self.weight = nn.Parameter(torch.empty(shape.vocab_size, shape.d_model))
        self.bias = None
        self._sharder = sharder

    def logits(self, x: Tensor) -> Tensor:
        """Project."""
        return _logits(x, self, self._sharder)

    def pack(self, quantization: Quantization | None) -> None:
        """See `Layer`. The matrix itself is gone then."""
        self.packed = _packed_head(self.weight, quantization)
        if self.packed is not None:
            self.weight = _nothing(self.weight.dtype)


@final
class Positions(Layer):
    """positions_... -> x_...D, learned; cut as activations between blocks are."""

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        self.rows, self.columns = (("-", max_positions),), (("R", dim),)
        self.weight = nn.Parameter(torch.empty(max_positions, dim))
        self.bias = None

    def forward(self, positions: Tensor) -> Tensor:
        """Look up."""
        return F.embedding(positions, self.weight)


@final
class LayerNorm(Layer):
    """(x - mean) / deviation * weight + bias of the last dim (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(
        self, dim: int, eps: float, sharder: Sharder = REPLICATED, *, has_bias: bool
    ) -> None:
        super().__init__()
        self.rows, self.columns = (), (("R", dim),)
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if has_bias else None
        self.eps = eps
        self._sharder = sharder

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self._sharder.layer_norm(x, self.weight, self.bias, self.eps)


@final
class RMSNorm(Layer):
    """x / rms(x) * weight over the last dim (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float, sharder: Sharder = REPLICATED) -> None:
        super().__init__()
        self.rows, self.columns = (), (("R", dim),)
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = None
        self.eps = eps
        self._sharder = sharder

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if self._sharder is REPLICATED:
            return rms_norm(x, self.weight, self.eps)
        return self._sharder.rms_norm(x, self.weight, self.eps)


def _nothing(dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)


def _packed_head(weight_VD: Tensor, quantization: Quantization | None) -> PackedWeight | None:
    """Return a vocabulary projection: in 8 bits, or fewer, where matrices are.

    Rounding it costs more than rounding a matrix of a block, so it has finer scales.
    """
    if quantization is None or not is_packable(weight_VD, "int8_groups"):
        return packed(weight_VD)
    return packed_groups(*int8_groups(weight_VD))


def _logits(x: Tensor, layer: Layer, sharder: Sharder) -> Tensor:
    if layer.packed is not None:
        return linear(x, layer.packed)
    x = sharder.constrain(x, "logits input")
    return sharder.constrain(F.linear(x, layer.weight), "logits")
