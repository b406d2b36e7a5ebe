"""Switch: how keys and values move from prefill to decode, and what it takes."""

from dataclasses import dataclass, replace
from typing import final

from alpage.cost import DTYPE_BYTES, EFFICIENCIES, collective_time
from alpage.layout import Collective, Dim, Sharding, redistribute
from alpage.planners.layouts import Candidate


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """How keys and values move from prefill to decode.

    Attributes:
        before: how those of a block lie behind prefill.
        after: how they lie for decode.
        collectives: what moves the keys of a block; its values move along.
        wire_bytes: that a device sends for all blocks.
        time_s: seconds, block by block.
    """

    before: Sharding
    after: Sharding
    collectives: tuple[Collective, ...]
    wire_bytes: int
    time_s: float


def switch_between(prefill: Candidate, decode: Candidate) -> Switch:
    """Return how the keys and values of one prefill move to where decode reads them.

    Whole sequences move. Where they are fewer than the shards, the busiest device has as much to
    move as if there were one for each, so as many are reckoned with. Which sequence has which
    number is free, so none moves for its number alone.
    """
    shape, mesh = prefill.shape, prefill.mesh
    before, after = _numbered_alike(
        prefill.attention.kv(shape.num_kv_heads, mesh),
        decode.attention.kv(shape.num_kv_heads, mesh),
    )
    num_shards = mesh.size({*before.dims[0].axes, *after.dims[0].axes})
    num_sequences = -(-prefill.step.num_sequences // num_shards) * num_shards
    sizes = {
        "T": num_sequences * prefill.step.num_new_tokens,
        "G": shape.num_kv_heads,
        # Scales, which elements of one byte have, go with them.
        "K": shape.head_dim + prefill.precision.kv_scale_bytes,
    }
    collectives = redistribute(
        before,
        after,
        sizes=sizes,
        mesh=mesh,
        element_bytes=DTYPE_BYTES[prefill.precision.kv],
    )
    hop_s = EFFICIENCIES[mesh.cluster.device.kind].hop_s
    times = [collective_time(collective, mesh, hop_s=hop_s) for collective in collectives]
    # Keys and values of a block go together: twice the bytes, one wait.
    block_s = sum(time.latency_s + 2 * time.transfer_s for time in times)
    return Switch(
        before=before,
        after=after,
        collectives=collectives,
        wire_bytes=2 * shape.num_layers * sum(one.wire_bytes for one in collectives),
        time_s=shape.num_layers * block_s,
    )


def _numbered_alike(before: Sharding, after: Sharding) -> tuple[Sharding, Sharding]:
    """Return both with the axes of their sequences in the order that needs least moves."""
    (first, *first_rest), (then, *then_rest) = before.dims, after.dims
    kept = tuple(axis for axis in first.axes if axis in then.axes)

    def numbered(dim: Dim, heads: tuple[str, ...], rest: list[Dim]) -> Sharding:
        # Axes that come from the heads, or go there, have the order that they have there.
        others = [axis for axis in heads if axis in dim.axes]
        others += [axis for axis in dim.axes if axis not in (*kept, *others)]
        return Sharding(dims=(replace(dim, axes=(*kept, *others)), *rest))

    return numbered(first, after.dims[1].axes, first_rest), numbered(
        then, before.dims[1].axes, then_rest
    )
