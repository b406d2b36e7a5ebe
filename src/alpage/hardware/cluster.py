"""Cluster: equal devices in equal hosts, and how they are joined."""

import math
from dataclasses import dataclass
from typing import final

from alpage.errors import InvalidValue
from alpage.hardware.device import Device, Link, require_positive, require_text
from alpage.hardware.mesh import Mesh


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal devices in equal hosts.

    A host is what one `link` joins: a machine, or all of a torus, whose links do not end at the
    machines. Devices are numbered through, host by host.

    Attributes:
        name: for people.
        device: every device.
        num_hosts: hosts.
        devices_per_host: devices of each.
        link: between the devices of a host.
        network: between hosts: its `bytes_per_s` are what one host sends, shared by its devices.
            None in a cluster of one host.
        torus: devices along each direction of a torus, the last one counting fastest; None where
            the link is none.

    Raises:
        InvalidValue: a count is not positive, hosts have no network, or the torus has not as many
            places as there are devices.
    """

    name: str
    device: Device
    num_hosts: int
    devices_per_host: int
    link: Link
    network: Link | None = None
    torus: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_text("cluster: name", self.name)
        where = f"cluster {self.name}"
        require_positive(f"{where}: num_hosts", self.num_hosts)
        require_positive(f"{where}: devices_per_host", self.devices_per_host)
        if (self.num_hosts > 1) != (self.network is not None):
            raise InvalidValue(
                field=f"{where}: network",
                value=self.network and self.network.name,
                limit="must be given if there are several hosts, and only then",
                remedy="Give the link between the hosts"
                if self.network is None
                else "Leave it out, or give num_hosts",
            )
        if (self.link.topology == "torus") != (self.torus is not None):
            raise InvalidValue(
                field=f"{where}: torus",
                value=self.torus,
                limit="must be given if the link is a torus, and only then",
                remedy="Give the devices along each direction, such as [4, 4, 4]"
                if self.torus is None
                else 'Leave it out, or give the link the topology "torus"',
            )
        if self.torus is not None:
            self._check_torus(self.torus)

    @property
    def num_devices(self) -> int:
        """Devices of all hosts."""
        return self.num_hosts * self.devices_per_host

    def mesh(self, **sizes: int) -> Mesh:
        """Return a mesh of all devices, such as `cluster.mesh(x=4, y=4, z=4)`.

        Args:
            sizes: size by axis, outermost first.

        Raises:
            InvalidValue: the sizes multiplied are not the number of devices, or an axis's name is
                not a small letter.
        """
        return Mesh(cluster=self, axes=tuple(sizes.items()))

    def _check_torus(self, torus: tuple[int, ...]) -> None:
        where = f"cluster {self.name}: torus"
        for size in torus:
            require_positive(where, size)
        if math.prod(torus) != self.devices_per_host:
            raise InvalidValue(
                field=where,
                value=torus,
                limit=f"has {math.prod(torus)} places for {self.devices_per_host} devices",
                remedy="Give sizes whose product is devices_per_host",
            )
