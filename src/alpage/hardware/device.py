"""Device: one accelerator or processor, and the links between such devices.

All numbers are the best that the hardware can do (a datasheet's, without sparsity) or the best that
was measured here; what a program reaches of them is the business of `alpage.cost`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from alpage.errors import InvalidValue

DeviceKind = Literal["tpu", "gpu", "cpu"]
Topology = Literal["torus", "ring", "switch"]

DEVICE_KINDS: tuple[DeviceKind, ...] = ("tpu", "gpu", "cpu")
TOPOLOGIES: tuple[Topology, ...] = ("torus", "ring", "switch")
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8", "int8")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or one processor, or a process's share of one.

    Attributes:
        name: as its maker calls it.
        kind: "tpu", "gpu" or "cpu".
        flops_per_s: dtype ("bfloat16", "int8", ...) -> operations a second in a dense matrix
            product of operands of that dtype; a multiplication and an addition are two.
        memory_bytes: that it has.
        memory_bytes_per_s: that it reads.
        source: where the numbers come from: the address of a datasheet, or how they were measured.

    Raises:
        InvalidValue: a number is not positive, or a kind or a dtype is none that we know.
    """

    name: str
    kind: DeviceKind
    flops_per_s: Mapping[str, float] = field(hash=False)
    memory_bytes: int
    memory_bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        require_text("device: name", self.name)
        where = f"device {self.name}"
        require_one_of(f"{where}: kind", self.kind, DEVICE_KINDS)
        if not self.flops_per_s:
            raise InvalidValue(
                field=f"{where}: flops_per_s",
                value=dict(self.flops_per_s),
                limit="must have the speed of at least one dtype",
                remedy=f"Give one of {', '.join(DTYPES)}",
            )
        for dtype, flops_per_s in self.flops_per_s.items():
            require_one_of(f"{where}: flops_per_s", dtype, DTYPES)
            require_positive(f"{where}: flops_per_s.{dtype}", flops_per_s)
        require_positive(f"{where}: memory_bytes", self.memory_bytes)
        require_positive(f"{where}: memory_bytes_per_s", self.memory_bytes_per_s)
        require_text(f"{where}: source", self.source)

    def flops_per_s_of(self, dtype: str) -> float:
        """Return the operations a second in matrix products of a dtype.

        Raises:
            InvalidValue: the source gives no number for it.
        """
        if dtype not in self.flops_per_s:
            raise InvalidValue(
                field="dtype",
                value=dtype,
                limit=f"is none that the speed of {self.name} is known for",
                remedy=f"Choose one of {', '.join(sorted(self.flops_per_s))}",
            )
        return self.flops_per_s[dtype]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins devices, or hosts.

    Attributes:
        name: as its maker calls it.
        topology: "torus" and "ring" join neighbours; a "switch" joins any two. Of a measured link
            it says how collectives run over it.
        bytes_per_s: that one member (a device; of a network between hosts: a host) sends, in one
            direction, over all its ports together.
        latency_s: of one hop: from the send of a short message to its receipt by a neighbour. A
            ring of K members waits for K - 1 of them.
        source: where the numbers come from: the address of a datasheet, or how they were measured.

    Raises:
        InvalidValue: a number is out of its range, or the topology is none that we know.
    """

    name: str
    topology: Topology
    bytes_per_s: float
    latency_s: float
    source: str

    def __post_init__(self) -> None:
        require_text("link: name", self.name)
        where = f"link {self.name}"
        require_one_of(f"{where}: topology", self.topology, TOPOLOGIES)
        require_positive(f"{where}: bytes_per_s", self.bytes_per_s)
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise InvalidValue(
                field=f"{where}: latency_s",
                value=self.latency_s,
                limit="must be a number of seconds, 0 or more",
                remedy="Give the seconds that one hop takes, such as 1e-6",
            )
        require_text(f"{where}: source", self.source)


def require_positive(name: str, value: float) -> None:
    """Refuse what is not a number above 0, under the name of a field."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidValue(
            field=name, value=value, limit="must be a number above 0", remedy="Correct the number"
        )


def require_text(name: str, value: str) -> None:
    """Refuse an empty text, under the name of a field."""
    if not value.strip():
        raise InvalidValue(
            field=name, value=value, limit="must not be empty", remedy="Give a line of text"
        )


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse what is none of a few words, under the name of a field."""
    if value not in known:
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be one of {', '.join(known)}",
            remedy="Choose one of them",
        )
