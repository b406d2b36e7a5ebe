"""Cluster file: a cluster as TOML, for people to write and for measurements to be kept.

::

    name = "two boxes"
    num_hosts = 2
    devices_per_host = 8

    [device]
    name = "NVIDIA L40S"
    kind = "gpu"
    memory_bytes = 48_000_000_000
    memory_bytes_per_s = 864e9
    source = "https://www.nvidia.com/en-us/data-center/l40s/"

    [device.flops_per_s]
    bfloat16 = 362e12

    [link]
    name = "PCIe 4"
    topology = "switch"
    bytes_per_s = 32e9
    latency_s = 5e-6
    source = "data sheet"

    [network]
    ...

`network` is there if there are several hosts, `torus = [4, 4, 4]` if the link is a torus.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpage.errors import InvalidValue
from alpage.hardware.cluster import Cluster
from alpage.hardware.device import Device, Link

_CLUSTER = {"name": str, "num_hosts": int, "devices_per_host": int, "device": dict, "link": dict}
_OPTIONAL = {"network": dict, "torus": list}
_DEVICE = {
    "name": str,
    "kind": str,
    "flops_per_s": dict,
    "memory_bytes": int,
    "memory_bytes_per_s": float,
    "source": str,
}
_LINK = {"name": str, "topology": str, "bytes_per_s": float, "latency_s": float, "source": str}
_NAMES = {str: "a text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}


def load_cluster(path: Path) -> Cluster:
    """Return the cluster that a TOML file describes.

    Raises:
        InvalidValue: the file cannot be read, is not TOML, lacks a key, has one that is not known,
            or a value is out of its range.
    """
    try:
        return cluster_from_toml(path.read_text(encoding="utf-8"), field=str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidValue(
            field="cluster",
            value=str(path),
            limit=f"cannot be read: {reason}",
            remedy="Give a TOML file that describes a cluster, or a name of the catalogue",
        ) from error


def cluster_from_toml(text: str, *, field: str = "cluster") -> Cluster:
    """Return the cluster that TOML describes.

    Args:
        text: TOML.
        field: what errors call it.

    Raises:
        InvalidValue: the text is not TOML, lacks a key, has one that is not known, or a value is
            out of its range.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidValue(
            field=field,
            value=text,
            limit=f"is not TOML: {error}",
            remedy="Correct the text at that place",
        ) from error
    check_table(table, field, _CLUSTER, _OPTIONAL)
    network, torus = table.get("network"), table.get("torus")
    return Cluster(
        name=table["name"],
        device=device_from_table(table["device"], f"{field}: device"),
        num_hosts=table["num_hosts"],
        devices_per_host=table["devices_per_host"],
        link=link_from_table(table["link"], f"{field}: link"),
        network=None if network is None else link_from_table(network, f"{field}: network"),
        torus=None if torus is None else shape_from_list(torus, f"{field}: torus"),
    )


def device_from_table(table: Mapping[str, Any], where: str) -> Device:
    """Return the device that a table describes; `where` is what errors call the table."""
    check_table(table, where, _DEVICE)
    speeds = table["flops_per_s"]
    check_table(speeds, f"{where}.flops_per_s", dict.fromkeys(speeds, float))
    flops_per_s = {dtype: float(speed) for dtype, speed in speeds.items()}
    memory_bytes_per_s = float(table["memory_bytes_per_s"])
    return Device(**{**table, "flops_per_s": flops_per_s, "memory_bytes_per_s": memory_bytes_per_s})


def link_from_table(table: Mapping[str, Any], where: str) -> Link:
    """Return the link that a table describes; `where` is what errors call the table."""
    check_table(table, where, _LINK)
    numbers = {key: float(table[key]) for key in ("bytes_per_s", "latency_s")}
    return Link(**{**table, **numbers})


def shape_from_list(sizes: list[Any], where: str) -> tuple[int, ...]:
    """Return the sizes of a torus; `where` is what errors call the list."""
    for size in sizes:
        _check_type(size, int, where)
    return tuple(sizes)


def check_table(
    table: Mapping[str, Any],
    where: str,
    types: Mapping[str, type],
    optional: Mapping[str, type] | None = None,
) -> None:
    """Refuse a table that lacks a key, has one that is not known, or a value of another type.

    Args:
        table: what TOML gave.
        where: what errors call it.
        types: key -> type of its value, for keys that must be there.
        optional: the same for those that may be.

    Raises:
        InvalidValue: the table is not of that form.
    """
    known = {**types, **(optional or {})}
    for key in sorted(types.keys() - table.keys()):
        raise InvalidValue(
            field=f"{where}.{key}",
            value=None,
            limit=f"is missing, and must be {_NAMES[types[key]]}",
            remedy="Add the key",
        )
    for key, value in table.items():
        if key not in known:
            raise InvalidValue(
                field=f"{where}.{key}",
                value=value,
                limit=f"is not a key that is known here: {', '.join(known)}",
                remedy="Correct the key, or take it out",
            )
        _check_type(value, known[key], f"{where}.{key}")


def _check_type(value: object, expected: type, where: str) -> None:
    accepted = (int, float) if expected is float else (expected,)
    is_accepted = isinstance(value, accepted) and not isinstance(value, bool)
    # TOML's integers have 64 bits; Python reads longer ones, which no float holds.
    if not is_accepted or (isinstance(value, int) and abs(value) >= 2**63):
        raise InvalidValue(
            field=where,
            value=value,
            limit=f"must be {_NAMES[expected]}",
            remedy="Correct the value",
        )


def to_toml(cluster: Cluster) -> str:
    """Return a cluster as TOML; `cluster_from_toml` returns an equal one."""
    return "\n".join(_lines(cluster)) + "\n"


def _lines(cluster: Cluster) -> Iterator[str]:
    device = cluster.device
    yield f"name = {_quoted(cluster.name)}"
    yield f"num_hosts = {cluster.num_hosts}"
    yield f"devices_per_host = {cluster.devices_per_host}"
    if cluster.torus is not None:
        yield f"torus = {list(cluster.torus)}"
    yield from ("", "[device]")
    yield f"name = {_quoted(device.name)}"
    yield f"kind = {_quoted(device.kind)}"
    yield f"memory_bytes = {device.memory_bytes}"
    yield f"memory_bytes_per_s = {float(device.memory_bytes_per_s)!r}"
    yield f"source = {_quoted(device.source)}"
    yield from ("", "[device.flops_per_s]")
    for dtype, flops_per_s in device.flops_per_s.items():
        yield f"{dtype} = {float(flops_per_s)!r}"
    for key, link in (("link", cluster.link), ("network", cluster.network)):
        if link is not None:
            yield from ("", f"[{key}]")
            yield f"name = {_quoted(link.name)}"
            yield f"topology = {_quoted(link.topology)}"
            yield f"bytes_per_s = {float(link.bytes_per_s)!r}"
            yield f"latency_s = {float(link.latency_s)!r}"
            yield f"source = {_quoted(link.source)}"


def _quoted(text: str) -> str:
    # JSON escapes what TOML forbids in a basic string, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
