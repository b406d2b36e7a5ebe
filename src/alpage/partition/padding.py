"""Padding: a model's sizes made divisible by heads and tokens that add nothing.

Heads of zeros attend, and what they see is multiplied with zeros; words of zeros get logits that
are cut off (Pope et al. 2022, arXiv:2211.05102, section 4, pads PaLM 540B from 48 to 64 heads).
"""

import dataclasses
from math import ceil

from alpage.workload import ModelShape


def padded(shape: ModelShape, *, num_head_shards: int, num_vocab_shards: int) -> ModelShape:
    """Return the shape with the fewest heads, and words, that can be cut into equal shards.

    Every key/value head keeps as many query heads as it has; a single one (multi-query) stays
    alone and gets more.

    Args:
        shape: the model.
        num_head_shards: ranks that heads are cut over.
        num_vocab_shards: ranks that the vocabulary is cut over.

    >>> from alpage.shapes import named_shape
    >>> padded(named_shape("palm-540b"), num_head_shards=64, num_vocab_shards=64).num_heads
    64
    """
    num_heads, num_kv_heads = shape.num_heads, shape.num_kv_heads
    if num_kv_heads == 1:
        num_heads = ceil(num_heads / num_head_shards) * num_head_shards
    group = num_heads // num_kv_heads
    while group * num_kv_heads % num_head_shards or _straddles(num_kv_heads, num_head_shards):
        num_kv_heads += 1
    return dataclasses.replace(
        shape,
        num_heads=group * num_kv_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=ceil(shape.vocab_size / num_vocab_shards) * num_vocab_shards,
    )


def _straddles(num_kv_heads: int, num_shards: int) -> bool:
    """Whether a rank would hold parts of several key/value heads."""
    return bool(num_kv_heads % num_shards and num_shards % num_kv_heads)
