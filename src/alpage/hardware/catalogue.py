"""Catalogue: clusters of real machines by name and size, such as "h100-16".

The numbers, and where they come from, are in catalogue.toml.
"""

import difflib
import math
import tomllib
from pathlib import Path
from typing import Any

from alpage.errors import InvalidValue
from alpage.hardware.cluster import Cluster
from alpage.hardware.cluster_file import device_from_table, link_from_table

# Of a number of devices.
_MAX_DIGITS = 7


def catalogue_names() -> tuple[str, ...]:
    """Return the names that clusters of the catalogue have, less their sizes."""
    return tuple(_tables())


def cluster_from_catalogue(name: str) -> Cluster:
    """Return the cluster of a name and a size: "tpu-v4-64" is 64 devices of "tpu-v4".

    Up to the size of a host, all devices are in one host; beyond it there are whole hosts. Chips of
    a torus come in the shapes that their maker offers.

    Raises:
        InvalidValue: there is no such name, or it does not come in that size.
    """
    tables = _tables()
    family, _, digits = name.rpartition("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS
    if family not in tables or not is_number:
        raise _unknown(name, tuple(tables))
    table, num_devices = tables[family], int(digits)
    shapes = {math.prod(shape): tuple(shape) for shape in table.get("shapes", ())}
    host_size = max(1, num_devices) if shapes else table["devices_per_host"]
    is_whole = num_devices < host_size or num_devices % host_size == 0
    if num_devices == 0 or not is_whole or (shapes and num_devices not in shapes):
        sizes = (
            ", ".join(map(str, shapes)) or f"1 to {host_size}, or {host_size} times any number of"
        )
        raise InvalidValue(
            field="cluster",
            value=name,
            limit=f"comes with {sizes} devices",
            remedy="Choose one of these sizes, or describe the cluster in a TOML file",
        )
    num_hosts = max(1, num_devices // host_size)
    network = table["network"] if num_hosts > 1 else None
    return Cluster(
        name=name,
        device=device_from_table(table["device"], f"{family}.device"),
        num_hosts=num_hosts,
        devices_per_host=min(num_devices, host_size),
        link=link_from_table(table["link"], f"{family}.link"),
        network=network and link_from_table(network, f"{family}.network"),
        torus=shapes.get(num_devices),
    )


def _tables() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _unknown(name: str, families: tuple[str, ...]) -> InvalidValue:
    close = difflib.get_close_matches(name.lower().removesuffix("-"), families, n=1)
    return InvalidValue(
        field="cluster",
        value=name,
        limit=f"is no TOML file and none of {', '.join(f'{family}-N' for family in families)}, "
        "with N devices",
        remedy=f"Perhaps you mean {close[0]}-8" if close else "Choose a name, such as h100-8",
    )
