"""Workload: the numbers that decide what a model costs."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    num_ffn_matrices: int
    vocab_size: int
    is_tied: bool

    @property
    def num_parameters(self) -> int:
        """Weights."""
        attention = 2 * self.d_model * self.head_dim * (self.num_heads + self.num_kv_heads)
        ffn = self.num_ffn_matrices * self.d_model * self.d_ff
        norms = 2 * self.d_model
        vocab = self.vocab_size * self.d_model * (1 if self.is_tied else 2)
        return self.num_layers * (attention + ffn + norms) + vocab + self.d_model

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values of a token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes
