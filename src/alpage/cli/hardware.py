"""Hardware: `alpage hardware`, what this machine can do, and the clusters that have a name."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alpage.cli.table import aligned
from alpage.cli.terminal import print_note, working
from alpage.hardware import (
    Cluster,
    Device,
    Link,
    available_memory_bytes,
    catalogue_names,
    cpu_name,
    num_usable_cores,
    resolve_cluster,
    save_local,
)
from alpage.units import GB, format_bytes

if TYPE_CHECKING:
    from alpage.runtime import Calibration

# Share of the cores that other programs may use before we say so.
_BUSY = 0.5


def hardware(
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Show a cluster and measure nothing: a name with a size, such as h100-8, "
            "a TOML file, or local."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Measure with this many processes, or GPUs, at work.",
            show_default="1, 2, 4, ... up to the cores or GPUs",
        ),
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure this machine and keep the result as the cluster `local`, or show a cluster."""
    if cluster is not None:
        shown = resolve_cluster(cluster)
        print(json.dumps(_to_json(shown)) if is_json else _describe(shown))
        return
    calibrations, paths = _measure(devices)
    if is_json:
        machine = {
            "name": cpu_name(),
            "num_cores": num_usable_cores(),
            "available_memory_bytes": available_memory_bytes(),
        }
        clusters = [
            _to_json(calibration.cluster)
            | {
                "worst_ratio": calibration.worst_ratio,
                "collectives": [dataclasses.asdict(timed) for timed in calibration.collectives],
                "path": str(path),
            }
            for calibration, path in zip(calibrations, paths, strict=True)
        ]
        print(json.dumps({"machine": machine, "clusters": clusters}))
        return
    memory = format_bytes(available_memory_bytes())
    print(f"{cpu_name()}, {num_usable_cores()} cores, {memory} of memory free\n")
    print(_to_table([calibration.cluster for calibration in calibrations]))
    print_note(f"kept in {paths[0].parent}; each line is what one of N gets while all N work")


def _measure(devices: int | None) -> tuple[list["Calibration"], list[Path]]:
    """Measure and keep what was asked for, or every power of two up to all devices."""
    num_busy, num_cores = os.getloadavg()[0], num_usable_cores()
    if num_busy > _BUSY * num_cores:
        print_note(f"{num_busy:.1f} programs run on {num_cores} cores already: expect low numbers")
    with working("measuring") as notify:
        from alpage.runtime import calibrate, num_local_devices

        num_all = num_local_devices()
        powers = [2**exponent for exponent in range(num_all.bit_length())]
        numbers = sorted({*powers, num_all}) if devices is None else [devices]
        calibrations, paths = [], []
        for number in numbers:
            calibration = calibrate(number)
            paths.append(save_local(calibration.cluster, is_default=number == num_all))
            calibrations.append(calibration)
            notify(f"measured {calibration.cluster.name}")
    return calibrations, paths


def _to_json(cluster: Cluster) -> dict[str, Any]:
    return dataclasses.asdict(cluster) | {"num_devices": cluster.num_devices}


def _to_table(clusters: Sequence[Cluster]) -> str:
    dtypes = list(clusters[0].device.flops_per_s)
    rows = [("CLUSTER", "DEVICE", *dtypes, "MEMORY", "LINK", "LATENCY")]
    for cluster in clusters:
        device, has_link = cluster.device, cluster.num_devices > 1
        rows.append(
            (
                cluster.name,
                device.name,
                *(_speed(device.flops_per_s[dtype]) for dtype in dtypes),
                _bandwidth(device.memory_bytes_per_s),
                _bandwidth(cluster.link.bytes_per_s) if has_link else "-",
                f"{cluster.link.latency_s * 1e6:.1f} us" if has_link else "-",
            )
        )
    sheet = _data_sheet(clusters[0].device)
    if sheet is not None:
        speeds = (_speed(sheet.flops_per_s[t]) if t in sheet.flops_per_s else "-" for t in dtypes)
        bandwidth = _bandwidth(sheet.memory_bytes_per_s)
        rows.append(("(data sheet)", sheet.name, *speeds, bandwidth, "-", "-"))
    return aligned(rows)


def _data_sheet(device: Device) -> Device | None:
    """Return the device of the catalogue that has the name of a measured one."""
    known = (resolve_cluster(f"{name}-1").device for name in catalogue_names())
    return next((one for one in known if one.name == device.name), None)


def _describe(cluster: Cluster) -> str:
    device = cluster.device
    hosts = f"{cluster.num_hosts} x {cluster.devices_per_host}"
    rows = [
        ("cluster", cluster.name),
        ("devices", str(cluster.num_devices) if cluster.num_hosts == 1 else f"{hosts} in hosts"),
        ("device", f"{device.name} ({device.kind})"),
        *((dtype, _speed(speed)) for dtype, speed in device.flops_per_s.items()),
        ("memory", f"{format_bytes(device.memory_bytes)}, {_bandwidth(device.memory_bytes_per_s)}"),
        ("link", _describe_link(cluster.link)),
        *([("torus", " x ".join(map(str, cluster.torus)))] if cluster.torus else []),
        *([("network", _describe_link(cluster.network))] if cluster.network else []),
    ]
    of_network = [cluster.network.source] if cluster.network else []
    sources = dict.fromkeys([device.source, cluster.link.source, *of_network])
    return aligned([*rows, *(("source", source) for source in sources)])


def _describe_link(link: Link) -> str:
    latency = f"{link.latency_s * 1e6:,.4g} us"
    return f"{link.name} ({link.topology}), {_bandwidth(link.bytes_per_s)}, {latency} a hop"


def _speed(flops_per_s: float) -> str:
    if flops_per_s >= 1e12:
        return f"{flops_per_s / 1e12:,.1f} TFLOP/s"
    return f"{flops_per_s / GB:,.0f} GFLOP/s"


def _bandwidth(bytes_per_s: float) -> str:
    return f"{bytes_per_s / GB:,.1f} GB/s"
