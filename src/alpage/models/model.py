"""Model: what every architecture's file fills in, and serving and training call.

A model runs in three steps, so that stages of it can run on different ranks: the first stage's
`enter`, every stage's `through` one after the other, the last stage's `leave`.

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, V vocabulary,
R rows whose logits are wanted.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from alpage.models.layers import Layer
from alpage.models.quantize import Quantization
from alpage.ops.attention import PagedKV
from alpage.ops.program import Program, compiled
from alpage.partition import REPLICATED, Sharder
from alpage.workload import ModelShape


class Model(nn.Module, ABC):
    """tokens_T -> logits_TV.

    Attributes:
        sharder: how it runs on this rank.
        blocks: of this stage, by their numbers in the model.
        quantization: of its matrices; None: they are of floats.
        num_mapped_bytes: of its weights that lie in a file, mapped; memory of a file passes for
            free.
    """

    sharder: Sharder
    blocks: nn.ModuleDict
    quantization: Quantization | None = None
    num_mapped_bytes: int = 0

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

    def through(self, x_TD: Tensor, positions_T: Tensor, kv: PagedKV | None = None) -> Tensor:
        """Return x_TD behind this stage's blocks; `kv[0]` is the past of its first block."""
        return self.through_blocks(x_TD, self.turns(positions_T), kv)

    def turns(self, positions_T: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return turn_TK, by which the blocks turn queries and keys; None: by nothing."""
        return None

    def through_blocks(
        self, x_TD: Tensor, turn_TK: Tensor | None, kv: PagedKV | None = None
    ) -> Tensor:
        """Return x_TD behind this stage's blocks, when what they need of positions is known."""
        for layer, block in enumerate(self.blocks.values()):
            x_TD = block(x_TD, turn_TK, None if kv is None else kv[layer])
        return x_TD

    @property
    def is_vocab_int8(self) -> bool:
        """Whether kernels of ours project to the vocabulary in 8 bits."""
        head = self.head
        packed = head.packed if isinstance(head, Layer) else None
        return packed is not None and packed.kind == "int8_groups"

    def program(self) -> Program | None:
        """Return `through_blocks` as one call for pages on a CPU; None where there is no such."""
        if self.sharder is not REPLICATED:
            return None
        return compiled(self.through_blocks, self.shape.d_model, self.shape.head_dim)

    @abstractmethod
    def leave(self, x_TD: Tensor) -> Tensor:
        """Return x_TD behind the last norm. The last stage's."""

    @abstractmethod
    def logits(self, x_RD: Tensor) -> Tensor:
        """Return logits_RV of the rows that are asked for. The last stage's."""
