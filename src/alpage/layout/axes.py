"""Logical axes: the names that the dims of a model's tensors go by, with the paper's letters."""

from typing import Final

LOGICAL_AXES: Final = {
    "B": "batch",
    "L": "length",
    "T": "tokens",  # batch and length as one
    "E": "embed",
    "F": "ffw",
    "H": "heads",
    "G": "kv_heads",
    "K": "head_dim",
    "V": "vocab",
    "N": "experts",
}
