"""Model: what every architecture's file fills in, and serving and training call.

A model runs in three steps, so that stages of it can run on different ranks: the first stage's
`enter`, every stage's `through` one after the other, the last stage's `leave`.

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, V vocabulary,
R rows whose logits are wanted.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from alpage.ops.attention import PagedKV
from alpage.partition import Sharder
from alpage.workload import ModelShape


class Model(nn.Module, ABC):
    """tokens_T -> logits_TV.

    Attributes:
        sharder: how it runs on this rank.
    """

    sharder: Sharder

    @property
    @abstractmethod
    def shape(self) -> ModelShape:
        """Sizes of the whole model."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""

    def forward(self, tokens_T: Tensor, positions_T: Tensor, kv: PagedKV | None = None) -> Tensor:
        """Return logits_TV of every token.

        Args:
            tokens_T: token ids: flat with `kv`, [B, L] without.
            positions_T: position of each token in its sequence, below `max_positions`.
            kv: pages of the past; None: every row of [B, L] is a whole sequence.
        """
        return self.logits(self.sharder.rows(self.hidden(tokens_T, positions_T, kv)))

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, kv: PagedKV | None = None) -> Tensor:
        """Return x_TD, what `logits` reads."""
        return self.leave(self.through(self.enter(tokens_T, positions_T), positions_T, kv))

    @abstractmethod
    def enter(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:
        """Return x_TD, what the first block reads. The first stage's."""

    @abstractmethod
    def through(self, x_TD: Tensor, positions_T: Tensor, kv: PagedKV | None = None) -> Tensor:
        """Return x_TD behind this stage's blocks; `kv[0]` is the past of its first block."""

    @abstractmethod
    def leave(self, x_TD: Tensor) -> Tensor:
        """Return x_TD behind the last norm. The last stage's."""

    @abstractmethod
    def logits(self, x_RD: Tensor) -> Tensor:
        """Return logits_RV of the rows that are asked for. The last stage's."""
