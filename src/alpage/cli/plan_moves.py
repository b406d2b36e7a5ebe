"""Plan moves: what the devices send one another for one block, in the order they run it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from alpage.cost import DTYPE_BYTES, EFFICIENCIES, collective_time, padded_sizes
from alpage.layout import Change, Collective, block_rounds, weight_changes
from alpage.planners import Candidate


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A tensor that changes how it lies.

    Attributes:
        turn: from 1 on; what has the same number goes together. None for weights, which wait for
            nothing and come while the products before them compute.
        change: the tensor, before and after.
        collectives: that carry it out.
        sent_bytes: of one device.
        wait_s: seconds that hops take; zero for what rides along in another's messages.
        transfer_s: seconds that bytes take.
    """

    turn: int | None
    change: Change
    collectives: tuple[Collective, ...]
    sent_bytes: int
    wait_s: float
    transfer_s: float


def block_moves(candidate: Candidate) -> tuple[Move, ...]:
    """Return the moves of one block: gathered weights first, then activations turn by turn."""
    shape, attention, mesh = candidate.shape, candidate.attention, candidate.mesh
    moves = list(_moves(candidate, None, weight_changes(shape, attention, mesh)))
    for number, changes in enumerate(block_rounds(shape, attention, mesh), start=1):
        moves += _moves(candidate, number, changes)
    return tuple(moves)


def _moves(candidate: Candidate, turn: int | None, changes: Sequence[Change]) -> Iterator[Move]:
    mesh, precision = candidate.mesh, candidate.precision
    sizes = padded_sizes(candidate.shape, candidate.attention, mesh, candidate.step)
    element_bytes = {
        "weight": DTYPE_BYTES[precision.weights],
        "activation": DTYPE_BYTES[precision.compute],
        "statistic": DTYPE_BYTES["float32"],
    }
    hop_s = EFFICIENCIES[mesh.cluster.device.kind].hop_s
    for change in changes:
        collectives = change.collectives(sizes, mesh, element_bytes[change.content])
        times = [collective_time(one, mesh, hop_s=hop_s) for one in collectives]
        is_merged = EFFICIENCIES[mesh.cluster.device.kind].is_asynchronous and len(changes) > 1
        rides_along = is_merged and change.content == "statistic"
        yield Move(
            turn=turn,
            change=change,
            collectives=collectives,
            sent_bytes=change.num_tensors * sum(one.wire_bytes for one in collectives),
            wait_s=0.0 if rides_along else sum(time.latency_s for time in times),
            transfer_s=change.num_tensors * sum(time.transfer_s for time in times),
        )
