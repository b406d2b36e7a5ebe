"""Machines: small clusters with round numbers, of a kind of device that reaches all of them."""

from alpage.hardware import Cluster, Device, Link

FLOPS_PER_S = 1e6
MEMORY_BYTES_PER_S = 1e4
LINK = {"bytes_per_s": 100.0, "latency_s": 1.0}
NETWORK = {"bytes_per_s": 40.0, "latency_s": 10.0}


def machine(num_hosts=1, devices_per_host=1, topology="switch", torus=None, **changed) -> Cluster:
    device = {"flops_per_s": FLOPS_PER_S, "memory_bytes_per_s": MEMORY_BYTES_PER_S}
    device |= {name: changed.pop(name) for name in device.keys() & changed.keys()}
    return Cluster(
        name="machine",
        device=Device(
            name="device",
            kind="cpu",
            flops_per_s={"bfloat16": device["flops_per_s"]},
            memory_bytes=10**12,
            memory_bytes_per_s=device["memory_bytes_per_s"],
            source="made up",
        ),
        num_hosts=num_hosts,
        devices_per_host=devices_per_host,
        link=Link(name="link", topology=topology, source="made up", **LINK | changed),
        network=Link(name="network", topology="switch", source="made up", **NETWORK)
        if num_hosts > 1
        else None,
        torus=torus,
    )
