"""Memory: what a step keeps on each device."""

from dataclasses import dataclass
from typing import final

from alpage.cost.forward import DTYPE_BYTES, Precision, Step, padded_sizes
from alpage.hardware import Mesh
from alpage.layout import Attention, dividing
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on the device that keeps most.

    Attributes:
        weights_bytes: weights as they are stored.
        kv_bytes: keys and values of the step's sequences, after it.
        gathered_bytes: weights of one block as they are used, if that is not as they are stored;
            the next block's take the places of those that are done with.
        residual_bytes: activations between blocks. A step whose other activations do not fit is
            run in chunks, so they do not count.
    """

    weights_bytes: float
    kv_bytes: float
    gathered_bytes: float
    residual_bytes: float

    @property
    def total_bytes(self) -> float:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.gathered_bytes + self.residual_bytes


def device_memory(
    shape: ModelShape, attention: Attention, mesh: Mesh, step: Step, precision: Precision
) -> DeviceMemory:
    """Return what each device keeps for a step. See `forward_terms` for the arguments."""
    layout = attention.layout
    sizes = padded_sizes(shape, attention, mesh, step)
    element_bytes = DTYPE_BYTES[precision.weights]
    stored = _block_elements(shape, attention, mesh, sizes, is_used=False)
    used = _block_elements(shape, attention, mesh, sizes, is_used=True)
    vocab = (1 if shape.is_tied else 2) * sizes["V"] * sizes["E"] / mesh.num_ranks
    context = step.num_past_tokens + step.num_new_tokens
    num_sequences = sizes["T"] / step.num_new_tokens
    residual_shards = mesh.size(layout.tokens) * mesh.size(layout.residual)
    is_gathered = stored != used
    return DeviceMemory(
        weights_bytes=(shape.num_layers * stored + vocab) * element_bytes,
        kv_bytes=num_sequences * context * kv_token_bytes(shape, attention, mesh, precision),
        gathered_bytes=used * element_bytes if is_gathered else 0.0,
        residual_bytes=sizes["T"] * sizes["E"] / residual_shards * DTYPE_BYTES[precision.compute],
    )


def kv_token_bytes(
    shape: ModelShape, attention: Attention, mesh: Mesh, precision: Precision
) -> float:
    """Return the bytes that a token of context takes on each device, on average.

    Head-sharded, a device keeps its heads of every token; batch-sharded, its share of the tokens.
    """
    kv = attention.kv(shape.num_kv_heads, mesh)
    shards = mesh.size(attention.sequence_axes) * mesh.size(kv.dims[1].axes)
    token_bytes = shape.kv_bytes_per_token(DTYPE_BYTES[precision.kv], precision.kv_scale_bytes)
    return token_bytes / shards


def max_context(
    shape: ModelShape,
    attention: Attention,
    mesh: Mesh,
    *,
    num_sequences: int,
    kv_bytes: float,
    precision: Precision,
) -> int:
    """Return the tokens of context that every sequence of a batch can have.

    Args:
        shape: the model.
        attention: how keys and values lie.
        mesh: the devices.
        num_sequences: in the batch.
        kv_bytes: memory for keys and values on each device.
        precision: in which dtype.

    >>> from alpage.hardware import resolve_cluster
    >>> from alpage.layout import LAYOUTS, attentions
    >>> from alpage.shapes import named_shape
    >>> cluster = resolve_cluster("tpu-v4-64")
    >>> over_batch = attentions(LAYOUTS["ws_2d"])[-1]
    >>> max_context(
    ...     named_shape("palm-540b"), over_batch, cluster.mesh(x=4, y=4, z=4), num_sequences=512,
    ...     kv_bytes=0.3 * cluster.device.memory_bytes, precision=Precision(),
    ... )
    10663
    """
    token_bytes = kv_token_bytes(shape, attention, mesh, precision)
    return int(kv_bytes / (num_sequences * token_bytes))


def _block_elements(
    shape: ModelShape, attention: Attention, mesh: Mesh, sizes: dict[str, int], *, is_used: bool
) -> float:
    """Return the elements of one block's weights on a device, stored or in use."""
    layout = attention.layout
    embed, ffw = (layout.embed, layout.ffw) if is_used else (layout.stored_embed, layout.stored_ffw)
    num_embed = sizes["E"] / mesh.size(embed)
    feed_forward = shape.num_experts * shape.num_ffn_matrices * sizes["F"] / mesh.size(ffw)
    heads = 2 * sizes["H"] * sizes["K"] / mesh.size(ffw)
    kv_heads = 2 * sizes["G"] * sizes["K"] / mesh.size(dividing(ffw, sizes["G"], mesh))
    return num_embed * (feed_forward + heads + kv_heads)
