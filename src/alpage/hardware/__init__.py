"""Hardware: what machine this is, and clusters of devices as data: links, meshes, a catalogue.

May import: the base modules. No torch.
"""

from alpage.hardware.catalogue import catalogue_names
from alpage.hardware.cluster import Cluster
from alpage.hardware.cpu import cpu_features, cpu_name, has_bf16_compute, num_usable_cores
from alpage.hardware.device import Device, Link
from alpage.hardware.local import save_local
from alpage.hardware.memory import available_memory_bytes
from alpage.hardware.mesh import Mesh, Span
from alpage.hardware.resolve import resolve_cluster

__all__ = [
    "Cluster",
    "Device",
    "Link",
    "Mesh",
    "Span",
    "available_memory_bytes",
    "catalogue_names",
    "cpu_features",
    "cpu_name",
    "has_bf16_compute",
    "num_usable_cores",
    "resolve_cluster",
    "save_local",
]
