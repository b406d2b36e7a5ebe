"""Meshes: where ranks are, and how far apart."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.errors import InvalidValue
from alpage.hardware import Cluster, Device, Link, Mesh, Span, resolve_cluster

DEVICE = Device(
    name="D",
    kind="gpu",
    flops_per_s={"float32": 1e12},
    memory_bytes=2**30,
    memory_bytes_per_s=1e11,
    source="made up",
)
LINK = Link(name="L", topology="switch", bytes_per_s=1e9, latency_s=0.0, source="made up")


def cluster_of(num_hosts, devices_per_host):
    return Cluster(
        name="C",
        device=DEVICE,
        num_hosts=num_hosts,
        devices_per_host=devices_per_host,
        link=LINK,
        network=LINK if num_hosts > 1 else None,
    )


@st.composite
def meshes(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    num_devices = math.prod(sizes)
    num_hosts = draw(st.sampled_from([n for n in range(1, 65) if num_devices % n == 0]))
    cluster = cluster_of(num_hosts, num_devices // num_hosts)
    return cluster.mesh(**dict(zip("xyzw", sizes, strict=False)))


@st.composite
def meshes_and_axes(draw):
    mesh = draw(meshes())
    axes = draw(st.permutations(mesh.names))
    return mesh, tuple(axes[: draw(st.integers(0, len(axes)))])


@given(meshes())
def test_coordinates_count_row_by_row(mesh):
    places = [tuple(mesh.coordinates(rank).values()) for rank in range(mesh.num_ranks)]
    assert places == list(product(*(range(size) for _, size in mesh.axes)))


@given(meshes_and_axes())
def test_groups_partition_the_ranks(mesh_and_axes):
    mesh, axes = mesh_and_axes
    groups = {mesh.group(rank, axes) for rank in range(mesh.num_ranks)}
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.num_ranks))
    assert {len(group) for group in groups} == {mesh.size(axes)}


@given(meshes_and_axes())
def test_a_group_differs_in_its_axes_only_and_counts_them_in_the_order_given(mesh_and_axes):
    mesh, axes = mesh_and_axes
    places = [range(mesh.size(axis)) for axis in axes]
    for rank in range(mesh.num_ranks):
        of_group = [mesh.coordinates(other) for other in mesh.group(rank, axes)]
        rest = {k: v for k, v in mesh.coordinates(rank).items() if k not in axes}
        assert all(rest.items() <= where.items() for where in of_group)
        assert [tuple(where[axis] for axis in axes) for where in of_group] == list(product(*places))


@given(meshes_and_axes())
def test_span_is_what_the_groups_show(mesh_and_axes):
    mesh, axes = mesh_and_axes
    per_host = []
    for rank in range(mesh.num_ranks):
        hosts = [other // mesh.cluster.devices_per_host for other in mesh.group(rank, axes)]
        per_host.append([hosts.count(host) for host in set(hosts)])
    assert mesh.span(axes) == Span(
        num_ranks=mesh.size(axes),
        num_hosts=max(map(len, per_host)),
        ranks_per_host=max(map(max, per_host)),
    )


def test_span_over_hosts():
    mesh = resolve_cluster("v100-64").mesh(x=8, y=4, z=2)
    assert mesh.span("x") == Span(num_ranks=8, num_hosts=8, ranks_per_host=1)
    assert mesh.span("yz") == Span(num_ranks=8, num_hosts=1, ranks_per_host=8)
    assert mesh.span("xz") == Span(num_ranks=16, num_hosts=8, ranks_per_host=2)
    # Hosts of 6 in groups of 4: the second group is on two hosts, with two ranks on each.
    assert cluster_of(2, 6).mesh(x=3, y=4).span("y") == Span(
        num_ranks=4, num_hosts=2, ranks_per_host=4
    )


REFUSED = {
    "too few places": ({"x": 2, "y": 2}, "mesh='x=2, y=2': has 4 places for the 8 devices of C"),
    "no axes": ({}, "mesh='': has 1 places for the 8 devices"),
    "a size of 0": ({"x": 0, "y": 8}, "mesh: x=0: an axis must have"),
    "a capital": ({"X": 8}, "mesh: X=8: an axis must have a small letter"),
    "a word": ({"data": 8}, "mesh: data=8"),
}


@pytest.mark.parametrize(("sizes", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_bad_meshes(sizes, message):
    with pytest.raises(InvalidValue) as error:
        cluster_of(1, 8).mesh(**sizes)
    assert str(error.value).startswith(message)


def test_refuses_an_axis_that_comes_twice():
    with pytest.raises(InvalidValue, match="that no other axis has"):
        Mesh(cluster=cluster_of(1, 4), axes=(("x", 2), ("x", 2)))


@pytest.mark.parametrize("axes", ["w", "xx"])
def test_refuses_axes_that_it_does_not_have(axes):
    mesh = cluster_of(1, 4).mesh(x=2, y=2)
    for ask in (mesh.size, mesh.span, lambda axes: mesh.group(0, axes)):
        with pytest.raises(InvalidValue, match="must name axes of the mesh x=2, y=2"):
            ask(axes)


@pytest.mark.parametrize("rank", [-1, 4])
def test_refuses_ranks_that_it_does_not_have(rank):
    with pytest.raises(InvalidValue, match="must be from 0 to 3"):
        cluster_of(1, 4).mesh(x=4).coordinates(rank)
