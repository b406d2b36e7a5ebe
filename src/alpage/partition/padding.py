"""Padding: a model's sizes made divisible by heads and tokens that add nothing.

Heads of zeros attend, and what they see is multiplied with zeros; words of zeros get logits that
are cut off (Pope et al. 2022, arXiv:2211.05102, section 4, pads PaLM 540B from 48 to 64 heads).
"""

import dataclasses
from math import ceil

from alpage.hardware import Mesh
from alpage.layout import Attention
from alpage.workload import ModelShape


def padded(shape: ModelShape, attention: Attention, mesh: Mesh) -> ModelShape:
    """Return the shape with the fewest heads, and words, that can be cut into equal shards.

    Every key/value head keeps as many query heads as it has; a single one (multi-query) stays
    alone and gets more.

    >>> from alpage.hardware import resolve_cluster
    >>> from alpage.layout import LAYOUTS, attentions
    >>> from alpage.shapes import named_shape
    >>> mesh = resolve_cluster("tpu-v4-64").mesh(x=4, y=4, z=4)
    >>> padded(named_shape("palm-540b"), attentions(LAYOUTS["ws_2d"])[0], mesh).num_heads
    64
    """
    layout = attention.layout
    projected_axes = layout.ffw + layout.embed
    num_head_shards = max(
        mesh.size(axes)
        for axes in (layout.stored_ffw, projected_axes, attention.queries().dims[1].axes)
    )
    num_vocab_shards = mesh.num_ranks
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


def attending_shape(shape: ModelShape, attention: Attention, mesh: Mesh) -> ModelShape:
    """Return the model as one rank attends: its share of the heads, padded ones among them."""
    whole = padded(shape, attention, mesh)
    num_heads = whole.num_heads // mesh.size(attention.queries().dims[1].axes)
    group = whole.num_heads // whole.num_kv_heads
    return dataclasses.replace(whole, num_heads=num_heads, num_kv_heads=max(1, num_heads // group))


def _straddles(num_kv_heads: int, num_shards: int) -> bool:
    """Whether a rank would hold parts of several key/value heads."""
    return bool(num_kv_heads % num_shards and num_shards % num_kv_heads)
