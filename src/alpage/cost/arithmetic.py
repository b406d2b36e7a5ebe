"""Arithmetic: the operations and the bytes that a step of a transformer cannot do without."""

from alpage.workload import ModelShape


def step_flops(
    shape: ModelShape, *, num_tokens: int, num_attended_pairs: int, num_logit_rows: int
) -> int:
    """Return the floating-point operations of one forward step.

    A multiply-add is two operations, so a token takes twice the weights it is multiplied with
    (Pope et al. 2022, arXiv:2211.05102, section 2), and a logit row twice the vocabulary
    projection. Attention takes, for every query that sees a key, 2 head_dim operations for the
    score and as many for the weighted value, in every query head of every layer.

    Args:
        shape: the model.
        num_tokens: tokens that run through the blocks.
        num_attended_pairs: (query, key) pairs, summed over sequences: a query at position p sees
            p + 1 keys.
        num_logit_rows: tokens whose logits are computed.

    >>> from alpage.workload import ModelShape
    >>> tiny = ModelShape(num_layers=1, d_model=2, num_heads=1, num_kv_heads=1, head_dim=2, d_ff=4,
    ...                   num_ffn_matrices=3, vocab_size=10, is_tied=True)
    >>> step_flops(tiny, num_tokens=1, num_attended_pairs=1, num_logit_rows=1)
    128
    """
    matrices = 2 * num_tokens * shape.num_active_block_parameters
    attention = 4 * num_attended_pairs * shape.num_layers * shape.num_heads * shape.head_dim
    logits = 2 * num_logit_rows * shape.vocab_size * shape.d_model
    return matrices + attention + logits


def step_bytes(
    shape: ModelShape,
    *,
    num_tokens: int,
    num_kv_tokens_read: int,
    weight_element_bytes: float,
    kv_element_bytes: int,
    kv_scale_bytes: int = 0,
) -> float:
    """Return the bytes that one forward step has to move from and to memory.

    Every weight is read once, whatever the batch; of an embedding that is not also the vocabulary
    projection, only the tokens' rows. Keys and values are read once per token of context and
    written once per new token. Activations are left out: they stay in caches.

    Args:
        shape: the model.
        num_tokens: tokens that run through the blocks.
        num_kv_tokens_read: tokens of context whose keys and values are read, shared ones once.
        weight_element_bytes: bytes of a weight.
        kv_element_bytes: bytes of an element of keys and values.
        kv_scale_bytes: that a token's keys, and its values, take in a head besides.
    """
    num_weights = shape.num_parameters
    if not shape.is_tied:
        num_weights += (num_tokens - shape.vocab_size) * shape.d_model
    token_bytes = shape.kv_bytes_per_token(kv_element_bytes, kv_scale_bytes)
    kv = (num_kv_tokens_read + num_tokens) * token_bytes
    return num_weights * weight_element_bytes + kv


def roofline_s(flops: float, num_bytes: float, *, flops_per_s: float, bytes_per_s: float) -> float:
    """Return the least seconds for a step (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Computing and moving overlap perfectly, so the slower of the two decides.

    >>> roofline_s(100.0, 10.0, flops_per_s=50.0, bytes_per_s=1.0)
    10.0
    """
    return max(flops / flops_per_s, num_bytes / bytes_per_s)
