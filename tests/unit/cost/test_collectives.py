"""Seconds of a collective: hops and bytes by hand, for each topology and over two hosts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import LINK, NETWORK, machine

from alpage.cost.collectives import CollectiveTime, collective_time, torus_hops
from alpage.layout import Collective

HOP_S = 0.5
WAIT_S = LINK["latency_s"] + HOP_S
FAR_WAIT_S = NETWORK["latency_s"] + HOP_S
PAYLOAD_BYTES = 800
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute")


def timed(kind, axes, mesh, payload_bytes=PAYLOAD_BYTES):
    num_ranks = mesh.size(axes)
    kept_bytes = 0 if kind == "permute" else payload_bytes // num_ranks
    collective = Collective(
        kind=kind,
        axes=tuple(axes),
        payload_bytes=payload_bytes,
        wire_bytes=payload_bytes - kept_bytes,
    )
    return collective_time(collective, mesh, hop_s=HOP_S)


@pytest.mark.parametrize(
    ("kind", "axes", "num_hops"),
    [
        ("all_gather", "x", 2),
        ("reduce_scatter", "xy", 4),
        ("all_gather", "xyz", 6),
        ("all_reduce", "x", 4),
        ("all_to_all", "z", 2),
        ("permute", "x", 1),
    ],
)
def test_torus(kind, axes, num_hops):
    """Both ways around a ring of 4 are 2 hops; the whole payload passes all links of a chip."""
    mesh = machine(1, 64, "torus", torus=(4, 4, 4)).mesh(x=4, y=4, z=4)
    assert timed(kind, axes, mesh) == CollectiveTime(num_hops * WAIT_S, PAYLOAD_BYTES / 100)


@pytest.mark.parametrize(
    ("num_ranks", "torus", "num_hops"),
    [
        (1, (4, 4, 4), 0),
        (16, (4, 4, 4), 4),
        (8, (2, 2, 2), 3),
        (16, (2, 8, 16), 5),  # 2 x 8: one hop and four, rather than 16: eight
        (8, (2, 4, 2), 3),
        (32, (4, 2, 4), 5),
        (2, (4, 4), 1),  # a part of a direction
    ],
)
def test_hops_of_a_torus(num_ranks, torus, num_hops):
    assert torus_hops(num_ranks, torus) == num_hops


@pytest.mark.parametrize(
    ("topology", "kind", "num_hops"),
    [
        ("ring", "all_gather", 7),
        ("ring", "all_reduce", 14),
        ("ring", "permute", 1),
        ("switch", "all_gather", 3),
        ("switch", "all_reduce", 6),
        ("switch", "all_to_all", 3),
    ],
)
def test_one_host(topology, kind, num_hops):
    """Of eight members each keeps an eighth."""
    mesh = machine(1, 8, topology).mesh(x=8)
    sent = 800 if kind == "permute" else 700
    assert timed(kind, "x", mesh) == CollectiveTime(num_hops * WAIT_S, sent / 100)


def test_a_switch_takes_whole_rounds():
    assert timed("all_gather", "x", machine(1, 5).mesh(x=5)).latency_s == 3 * WAIT_S


@pytest.mark.parametrize("topology", ["torus", "switch"])
def test_nothing_is_sent_for_a_slice(topology):
    cluster = machine(1, 8, topology, torus=(2, 2, 2) if topology == "torus" else None)
    assert timed("slice", "x", cluster.mesh(x=8)) == CollectiveTime(0.0, 0.0)


def test_two_hosts():
    """Four devices share 40 bytes a second; a host needs of the other's half each byte once."""
    mesh = machine(2, 4).mesh(x=2, y=4)
    between_s = (800 / 4) * (1 / 2) / (40 / 4)
    inside_s = 800 * (3 / 4) / 100
    assert timed("all_gather", "xy", mesh) == CollectiveTime(
        2 * WAIT_S + FAR_WAIT_S, between_s + inside_s
    )
    assert timed("all_reduce", "xy", mesh) == CollectiveTime(
        2 * (2 * WAIT_S + FAR_WAIT_S), between_s + inside_s
    )


def test_all_to_all_over_two_hosts():
    """Half of every shard goes to the other host, and nobody there can pass it on."""
    mesh = machine(2, 4).mesh(x=2, y=4)
    between_s = 800 * (1 / 2) / (40 / 4)
    assert timed("all_to_all", "xy", mesh).transfer_s == between_s + 800 * (3 / 4) / 100


def test_groups_of_one_rank_a_host():
    """All four pairs of peers send at once, so each has a quarter of the port."""
    mesh = machine(2, 4).mesh(x=2, y=4)
    assert timed("all_gather", "x", mesh) == CollectiveTime(FAR_WAIT_S, 800 * (1 / 2) / (40 / 4))


def test_groups_inside_a_host_of_several():
    mesh = machine(2, 4).mesh(x=2, y=4)
    assert timed("all_gather", "y", mesh) == CollectiveTime(2 * WAIT_S, 600 / 100)


@given(
    st.sampled_from(KINDS),
    st.sampled_from(["torus", "ring", "switch"]),
    st.integers(1, 10**9),
    st.integers(0, 10**9),
)
def test_more_bytes_take_longer_and_more_bandwidth_less(kind, topology, num_bytes, more_bytes):
    torus = (2, 2, 2) if topology == "torus" else None
    slow, fast = (
        machine(1, 8, topology, torus=torus, bytes_per_s=bytes_per_s).mesh(x=2, y=4)
        for bytes_per_s in (100.0, 300.0)
    )
    time = timed(kind, "xy", slow, num_bytes)
    assert time.latency_s > 0
    assert time.transfer_s >= 0
    assert timed(kind, "xy", slow, num_bytes + more_bytes).transfer_s >= time.transfer_s
    assert timed(kind, "xy", fast, num_bytes).transfer_s <= time.transfer_s


@given(st.sampled_from(KINDS[:-1]), st.sampled_from([1, 2, 4]))
def test_two_hosts_are_slower_than_one(kind, per_host):
    together = timed(kind, "x", machine(1, 2 * per_host).mesh(x=2 * per_host))
    apart = timed(kind, "x", machine(2, per_host).mesh(x=2 * per_host))
    assert apart.latency_s > together.latency_s
    assert apart.transfer_s > together.transfer_s
