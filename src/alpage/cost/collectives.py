"""Collectives: the seconds that one takes, from the bytes it sends and the hops it waits for.

The alpha-beta model (Thakur et al. 2005, "Optimization of collective communication operations in
MPICH"): hops times the latency of one, plus bytes over bandwidth. On a torus all links of a chip
are taken to work together whatever axes a collective spans, and the whole payload to pass through
them, as in Pope et al. 2022 (arXiv:2211.05102, appendix A): the one makes up for the other.
Over several hosts it runs in two levels: between hosts every device moves its share with the peers
of its own place, through a network that the devices of a host share.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import ceil, log2, prod
from typing import final

from alpage.hardware import Mesh
from alpage.layout import Collective


@final
@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """Seconds of one collective.

    Attributes:
        latency_s: waiting for hops, whatever the size.
        transfer_s: moving bytes.
    """

    latency_s: float
    transfer_s: float


def collective_time(collective: Collective, mesh: Mesh, *, hop_s: float) -> CollectiveTime:
    """Return what a collective takes when all groups of its axes run it at once.

    Args:
        collective: what is done, with its bytes.
        mesh: where.
        hop_s: seconds of a hop beside the link's latency.
    """
    if collective.kind == "slice":
        return CollectiveTime(0.0, 0.0)
    cluster, span = mesh.cluster, mesh.span(collective.axes)
    rounds = 2 if collective.kind == "all_reduce" else 1
    latency_s = rounds * _num_hops(collective, mesh) * (cluster.link.latency_s + hop_s)
    if span.num_hosts == 1:
        is_torus = cluster.link.topology == "torus"
        sent = collective.payload_bytes if is_torus else collective.wire_bytes
        return CollectiveTime(latency_s, sent / cluster.link.bytes_per_s)
    assert cluster.network is not None
    latency_s += rounds * ceil(log2(span.num_hosts)) * (cluster.network.latency_s + hop_s)
    share = cluster.network.bytes_per_s / cluster.devices_per_host
    # An all-to-all's bytes all have their own goal; of the others a host needs each but once.
    is_shared = collective.kind not in ("all_to_all", "permute")
    sent_between = collective.payload_bytes / (span.ranks_per_host if is_shared else 1)
    between_s = sent_between * (1 - 1 / span.num_hosts) / share
    inside = collective.payload_bytes * (1 - 1 / span.ranks_per_host)
    return CollectiveTime(latency_s, between_s + inside / cluster.link.bytes_per_s)


def _num_hops(collective: Collective, mesh: Mesh) -> int:
    """Return the hops inside a host that the last byte of a collective waits for."""
    if collective.kind == "permute":
        return 1
    cluster, num_ranks = mesh.cluster, mesh.span(collective.axes).ranks_per_host
    match cluster.link.topology:
        case "torus":
            assert cluster.torus is not None
            return torus_hops(num_ranks, cluster.torus)
        case "ring":
            return num_ranks - 1
        case "switch":
            return ceil(log2(num_ranks))


@cache
def torus_hops(num_ranks: int, torus: tuple[int, ...]) -> int:
    """Return the hops of a group: along each of its directions, half a ring, both ways at once.

    The group takes the whole directions of the torus that together have as many places, where
    there are such.

    >>> torus_hops(16, (4, 4, 4)), torus_hops(2, (4, 4, 4))
    (4, 1)
    """
    ways = [
        sum(size // 2 for size in directions)
        for number in range(len(torus) + 1)
        for directions in combinations(torus, number)
        if prod(directions) == num_ranks
    ]
    return min(ways, default=num_ranks // 2)
