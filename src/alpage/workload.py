"""Workload: the numbers that decide what a model costs to run."""

from dataclasses import dataclass
from typing import Final, final

# Of a token's keys, and of its values, in a head, where they are kept in 8 bits.
KV_SCALE_BYTES: Final = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        num_layers: transformer blocks.
        d_model: features of a token between blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads; each serves `num_heads / num_kv_heads` query heads.
        head_dim: features of a head.
        d_ff: features inside the feed-forward.
        num_ffn_matrices: 3 with a gate, 2 without.
        vocab_size: tokens there are.
        is_tied: whether the vocabulary projection is the embedding.
        num_experts: feed-forwards of a block, of which a router picks; 1 has no router.
        num_active_experts: experts that a token runs through.
        is_parallel: whether attention and feed-forward read one normalised input, and so share a
            norm (Chowdhery et al. 2022, arXiv:2204.02311, section 2).
        num_norm_statistics: numbers that a norm needs of a token: its square for RMSNorm, its mean
            too for LayerNorm.

    >>> smollm2 = ModelShape(
    ...     num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, head_dim=64, d_ff=1536,
    ...     num_ffn_matrices=3, vocab_size=49152, is_tied=True,
    ... )
    >>> smollm2.num_parameters
    134515008
    >>> smollm2.kv_bytes_per_token(element_bytes=2)
    23040
    """

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    num_ffn_matrices: int
    vocab_size: int
    is_tied: bool
    num_experts: int = 1
    num_active_experts: int = 1
    is_parallel: bool = False
    num_norm_statistics: int = 1

    @property
    def num_active_block_parameters(self) -> int:
        """Weights of all blocks that one token is multiplied with."""
        return self._num_block_parameters(self.num_active_experts)

    @property
    def num_block_parameters(self) -> int:
        """Weights of all blocks: projections, routers and every expert's feed-forward."""
        return self._num_block_parameters(self.num_experts)

    @property
    def num_parameters(self) -> int:
        """All weights, norms included; biases and learned positions are not counted."""
        num_vocab_matrices = 1 if self.is_tied else 2
        norms = ((1 if self.is_parallel else 2) * self.num_layers + 1) * self.d_model
        vocab = num_vocab_matrices * self.vocab_size * self.d_model
        return self.num_block_parameters + vocab + norms

    def _num_block_parameters(self, num_experts: int) -> int:
        heads = 2 * self.num_heads + 2 * self.num_kv_heads  # q and out, k and v
        ffn = num_experts * self.num_ffn_matrices * self.d_ff
        router = self.num_experts if self.num_experts > 1 else 0
        return self.num_layers * self.d_model * (heads * self.head_dim + ffn + router)

    def kv_bytes_per_token(self, element_bytes: int, scale_bytes: int = 0) -> int:
        """Bytes of one token's keys and values in all layers.

        Args:
            element_bytes: of a number.
            scale_bytes: that the keys, and the values, of a head take besides.
        """
        head_bytes = self.head_dim * element_bytes + scale_bytes
        return 2 * self.num_layers * self.num_kv_heads * head_bytes
