"""Sharder: all that a model file says about being cut over devices.

A model names the points where a tensor may have to change how it lies, and leaves to the sharder
what happens there. With `Replicated` nothing does, and the file is plain PyTorch.

Dims: T tokens (or [B, L] with whole sequences), E model, V vocabulary.
"""

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias, final

import torch.nn.functional as F
from torch import Tensor, nn

# The parts of a weight's rows or columns, in order: logical axis and size. The axes are E embed,
# F ffw, H the features of query heads, G those of key/value heads, V vocab, N experts, R the
# embed of activations between blocks; "-" is never cut.
Parts: TypeAlias = tuple[tuple[str, int], ...]


class Cuttable(Protocol):
    """A layer that says what its weight is made of.

    Attributes:
        weight: [..., rows, columns], or a vector that has `columns` alone.
        bias: along the rows of a matrix, or like the vector; None: there is none.
        scale: of each row of a matrix of whole numbers; None: of floats.
        rows: parts of its rows; none of a vector.
        columns: parts of its columns.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: nn.Parameter | None
    rows: Parts
    columns: Parts


class Sharder(Protocol):
    """How a model runs on this rank of a mesh."""

    def cut(self, layer: Cuttable) -> None:
        """Replace the parameters of a whole layer by this rank's parts, once."""

    def share(self, letter: str, size: int) -> int:
        """Return how much of a logical axis this rank computes when weights are in use."""

    def place(self, num_tokens: Sequence[int]) -> None:
        """Say how many tokens of the next step are at home on each rank that is a home."""

    def weight(self, weight: Tensor, rows: Parts, columns: Parts) -> Tensor:
        """Return a stored weight as it is multiplied with."""

    def constrain(self, x: Tensor, point: str) -> Tensor:
        """Return a tensor as it has to lie at a point of the model (see `alpage.layout`)."""

    def tokens(self, tokens: Tensor) -> Tensor:
        """Return this rank's part of what every token has, between blocks."""

    def attended(self, tokens: Tensor) -> Tensor:
        """Return this rank's part of what every token has, while attending."""

    def embed(self, tokens: Tensor, weight_VE: Tensor) -> Tensor:
        """Look all tokens up; return those of this rank."""

    def rows(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Return x of the tokens at places among all, or of all, whichever rank has them."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / rms(x) * weight over the last dim."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Return (x - mean) / deviation * weight + bias over the last dim."""


@final
class Replicated(Sharder):
    """One device, or each for itself."""

    def cut(self, layer: Cuttable) -> None:
        """Leave them whole."""

    def share(self, letter: str, size: int) -> int:  # noqa: ARG002
        """All of it."""
        return size

    def place(self, num_tokens: Sequence[int]) -> None:
        """All are here."""

    def weight(self, weight: Tensor, rows: Parts, columns: Parts) -> Tensor:  # noqa: ARG002
        """As it is."""
        return weight

    def constrain(self, x: Tensor, point: str) -> Tensor:  # noqa: ARG002
        """As it is."""
        return x

    def tokens(self, tokens: Tensor) -> Tensor:
        """All of them."""
        return tokens

    def attended(self, tokens: Tensor) -> Tensor:
        """All of them."""
        return tokens

    def embed(self, tokens: Tensor, weight_VE: Tensor) -> Tensor:
        """Look tokens up."""
        return F.embedding(tokens, weight_VE)

    def rows(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Pick them."""
        return x if places is None else x[places]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Normalise."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)


REPLICATED: Final = Replicated()
