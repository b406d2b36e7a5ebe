"""Forward: the seconds of one forward step under a layout, term by term.

Every matrix product and every attention takes its roofline, collectives take theirs, and all of
them follow one another; only weights that are gathered come while the products compute, since they
wait for no activation (Pope et al. 2022, arXiv:2211.05102, sections 2 and 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

from alpage.cost.collectives import CollectiveTime, collective_time
from alpage.cost.efficiency import EFFICIENCIES, Efficiency
from alpage.hardware import Device, Mesh
from alpage.layout import Attention, Change, block_rounds, ends_changes, weight_changes
from alpage.workload import KV_SCALE_BYTES, ModelShape

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one forward step computes.

    Attributes:
        num_sequences: in the batch.
        num_new_tokens: of each sequence; 1 while decoding.
        num_past_tokens: of each sequence whose keys and values are in memory already.
    """

    num_sequences: int
    num_new_tokens: int
    num_past_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that run through the blocks."""
        return self.num_sequences * self.num_new_tokens


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The dtypes: weights as they are stored and moved, products as they are computed."""

    weights: str = "bfloat16"
    compute: str = "bfloat16"
    kv: str = "bfloat16"

    @property
    def kv_scale_bytes(self) -> int:
        """Bytes that a token's keys, and its values, take in a head besides their elements."""
        return KV_SCALE_BYTES if self.kv == "int8" else 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The seconds of a step; they follow one another, so their sum is the step's.

    Attributes:
        products_s: matrix products of the blocks and the vocabulary projection.
        attention_s: attention, reading keys and values.
        transfer_s: activations that collectives move.
        latency_s: hops that collectives wait for.
        gather_s: what gathering weights takes beyond the products that hide it.
    """

    products_s: float
    attention_s: float
    transfer_s: float
    latency_s: float
    gather_s: float

    @property
    def step_s(self) -> float:
        """All of them."""
        parts = (self.products_s, self.attention_s, self.transfer_s, self.latency_s, self.gather_s)
        return sum(parts)


@final
@dataclass(frozen=True, slots=True)
class _Products:
    """Prices matrix products on one rank."""

    flops_per_s: float
    bytes_per_s: float
    weight_bytes: int
    efficiency: Efficiency

    def time_s(self, m: float, k: float, n: float) -> float:
        flops_per_s = self.flops_per_s * self.efficiency.of_matmul(m, k, n)
        return max(2 * m * k * n / flops_per_s, k * n * self.weight_bytes / self.bytes_per_s)


def forward_terms(
    shape: ModelShape, attention: Attention, mesh: Mesh, step: Step, precision: Precision
) -> Terms:
    """Return what a step takes.

    Sequences, heads and vocabulary that do not divide evenly are padded, as a program would.

    Args:
        shape: the model.
        attention: how it attends, and its block's layout.
        mesh: the devices.
        step: what is computed.
        precision: in which dtypes.

    Raises:
        InvalidValue: the model's width cannot be cut as the layout asks, or the device does not
            compute in that dtype.
    """
    device, efficiency = mesh.cluster.device, EFFICIENCIES[mesh.cluster.device.kind]
    products = _Products(
        flops_per_s=device.flops_per_s_of(precision.compute),
        bytes_per_s=device.memory_bytes_per_s * efficiency.memory,
        weight_bytes=DTYPE_BYTES[precision.weights],
        efficiency=efficiency,
    )
    sizes = padded_sizes(shape, attention, mesh, step)
    rounds = block_rounds(shape, attention, mesh)
    moved = _sum([_round_time(changes, sizes, mesh, precision) for changes in rounds])
    gathered = _round_time(weight_changes(shape, attention, mesh), sizes, mesh, precision)
    ends = _ends_time(shape, attention, sizes, mesh, step, precision)
    product_s = _block_products_s(shape, attention, mesh, sizes, products)
    attention_s = _attention_s(attention, mesh, sizes, step, precision, products)
    num_layers = shape.num_layers
    gather_s = gathered.latency_s + gathered.transfer_s
    if efficiency.is_asynchronous:
        gather_s = max(0.0, gather_s - product_s)
    return Terms(
        products_s=num_layers * product_s + _logits_s(mesh, sizes, step, products),
        attention_s=num_layers * attention_s,
        transfer_s=num_layers * moved.transfer_s + ends.transfer_s,
        latency_s=num_layers * moved.latency_s + ends.latency_s,
        gather_s=num_layers * gather_s,
    )


def padded_sizes(shape: ModelShape, attention: Attention, mesh: Mesh, step: Step) -> dict[str, int]:
    """Return the size of each dim, those that can be padded so that they divide evenly."""
    attention.layout.check_shape(shape, mesh)
    num_ranks = mesh.num_ranks
    num_shards = mesh.size(attention.sequence_axes)
    layout = attention.layout
    num_tokens = _up_to(step.num_sequences, num_shards) * step.num_new_tokens
    projected_shards = mesh.size(layout.stored_ffw) * mesh.size(layout.embed)
    head_shards = max(projected_shards, mesh.size(attention.queries().dims[1].axes))
    return {
        "T": _up_to(num_tokens, mesh.size(layout.tokens)),
        "E": shape.d_model,
        "F": shape.d_ff,
        "H": _up_to(shape.num_heads, head_shards),
        "G": shape.num_kv_heads,
        "K": shape.head_dim,
        "N": shape.num_experts,
        "V": _up_to(shape.vocab_size, num_ranks),
    }


def _up_to(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def _block_products_s(
    shape: ModelShape, attention: Attention, mesh: Mesh, sizes: dict[str, int], products: _Products
) -> float:
    """Return the seconds of a block's products, fused as far as their input is the same."""
    layout = attention.layout
    rows = sizes["T"] / mesh.size(layout.tokens)
    embed = sizes["E"] / mesh.size(layout.embed)
    ffw = sizes["F"] / mesh.size(layout.ffw)
    heads = sizes["H"] * sizes["K"] / mesh.size(layout.ffw)
    kv_axes = attention.projected_kv(shape.num_kv_heads, mesh).dims[1].axes
    projected = heads + 2 * sizes["G"] * sizes["K"] / mesh.size(kv_axes)
    hidden = (shape.num_ffn_matrices - 1) * ffw
    if shape.is_parallel and shape.num_experts == 1:
        fused_in_s = products.time_s(rows, embed, projected + hidden)
        return fused_in_s + products.time_s(rows, heads + ffw, embed)
    # Tokens spread evenly over the experts that they reach.
    num_reached = min(shape.num_experts, max(1.0, rows * shape.num_active_experts))
    expert_rows = rows * shape.num_active_experts / num_reached
    expert_s = products.time_s(expert_rows, embed, hidden)
    expert_s += products.time_s(expert_rows, ffw, embed)
    attention_s = products.time_s(rows, embed, projected) + products.time_s(rows, heads, embed)
    return attention_s + num_reached * expert_s


def _attention_s(
    attention: Attention,
    mesh: Mesh,
    sizes: dict[str, int],
    step: Step,
    precision: Precision,
    products: _Products,
) -> float:
    """Return the seconds of a block's attention on the rank that has the most of it."""
    num_tokens = sizes["T"] / mesh.size(attention.sequence_axes)
    num_sequences = num_tokens / step.num_new_tokens
    heads = sizes["H"] / mesh.size(attention.queries().dims[1].axes)
    kv_heads = sizes["G"] / mesh.size(attention.kv(sizes["G"], mesh).dims[1].axes)
    context = step.num_past_tokens + step.num_new_tokens
    head_bytes = sizes["K"] * DTYPE_BYTES[precision.kv] + precision.kv_scale_bytes
    score_bytes = products.efficiency.score_bytes * num_tokens * context * heads
    memory_bytes = num_sequences * context * 2 * kv_heads * head_bytes + score_bytes
    num_pairs = num_tokens * (step.num_past_tokens + (step.num_new_tokens + 1) / 2)
    flops = 4 * num_pairs * heads * sizes["K"]
    flops_per_s = products.flops_per_s * products.efficiency.matmul
    return max(flops / flops_per_s, memory_bytes / products.bytes_per_s)


def _logits_s(mesh: Mesh, sizes: dict[str, int], step: Step, products: _Products) -> float:
    """Return the seconds of the vocabulary projection, behind each sequence's last token."""
    rows = sizes["T"] / step.num_new_tokens
    return products.time_s(rows, sizes["E"], sizes["V"] / mesh.num_ranks)


def _ends_time(
    shape: ModelShape,
    attention: Attention,
    sizes: dict[str, int],
    mesh: Mesh,
    step: Step,
    precision: Precision,
) -> CollectiveTime:
    """Return the collectives of embedding, for all tokens, and logits, for the last ones."""
    num_last = _up_to(sizes["T"] // step.num_new_tokens, mesh.size(attention.layout.tokens))
    sizes_of = {"embedding": sizes, "norm": sizes}
    return _sum(
        [
            _round_time(
                (change,), sizes_of.get(change.point, sizes | {"T": num_last}), mesh, precision
            )
            for change in ends_changes(shape, attention, mesh)
        ]
    )


def _round_time(
    changes: Sequence[Change], sizes: dict[str, int], mesh: Mesh, precision: Precision
) -> CollectiveTime:
    """Return what changes that go together take: their bytes add up."""
    times = [_change_time(change, sizes, mesh, precision) for change in changes]
    waits_s = {change: time.latency_s for change, time in zip(changes, times, strict=True)}
    return CollectiveTime(
        round_wait_s(waits_s, mesh.cluster.device), sum(time.transfer_s for time in times)
    )


def round_wait_s(waits_s: Mapping[Change, float], device: Device) -> float:
    """Return what a round waits, from what each of its changes would wait alone.

    Where its messages are merged, statistics are small enough to travel in those of the others.
    """
    if not EFFICIENCIES[device.kind].is_asynchronous:
        return sum(waits_s.values())
    return max(
        (
            wait_s
            for change, wait_s in waits_s.items()
            if change.content != "statistic" or len(waits_s) == 1
        ),
        default=0.0,
    )


def _change_time(
    change: Change, sizes: dict[str, int], mesh: Mesh, precision: Precision
) -> CollectiveTime:
    element_bytes = {
        "weight": DTYPE_BYTES[precision.weights],
        "activation": DTYPE_BYTES[precision.compute],
        "statistic": 4,
    }[change.content]
    hop_s = EFFICIENCIES[mesh.cluster.device.kind].hop_s
    collectives = change.collectives(sizes, mesh, element_bytes)
    time = _sum([collective_time(collective, mesh, hop_s=hop_s) for collective in collectives])
    return CollectiveTime(time.latency_s, change.num_tensors * time.transfer_s)


def _sum(times: Sequence[CollectiveTime]) -> CollectiveTime:
    return CollectiveTime(
        sum(time.latency_s for time in times), sum(time.transfer_s for time in times)
    )
