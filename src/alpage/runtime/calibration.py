"""Calibration: this machine as a cluster, from what is measured on it.

The cluster `local-N` has N devices that work at the same time: GPUs if there are any, else
processes that share the CPU. What belongs to such a process is what it got while all N of them
wanted it, so its speed is about an N-th of the machine's.
"""

from dataclasses import dataclass
from datetime import date
from typing import final

import torch

from alpage.errors import InvalidValue, Unsupported
from alpage.hardware import (
    Cluster,
    Device,
    Link,
    available_memory_bytes,
    cpu_name,
    num_usable_cores,
)
from alpage.runtime.link_fit import TimedCollective, fit_link
from alpage.runtime.shared_ceilings import SharedCeilings, measure_shared_ceilings

_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "float16", "bfloat16")}
# Several times what a slow machine takes, which has to let its processes take turns.
_DEADLINE_S = 120.0
_DEADLINE_S_PER_DEVICE = 30.0
_MAX_PROCESSES_PER_CORE = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured with some number of devices at work.

    Attributes:
        cluster: the machine as it is to plans.
        collectives: times that the cluster's link was fitted to; none with one device.
        worst_ratio: of these times, the one that the link explains worst: the larger of measured
            and explained over the smaller. 1 with one device.
    """

    cluster: Cluster
    collectives: tuple[TimedCollective, ...]
    worst_ratio: float


def num_local_devices() -> int:
    """Return how many devices the machine has: its GPUs, or else the cores that we may use."""
    return torch.cuda.device_count() or num_usable_cores()


def calibrate(num_devices: int) -> Calibration:
    """Measure this machine with some number of its devices at work, in as many new processes.

    Args:
        num_devices: GPUs, or processes that share the CPU.

    Raises:
        InvalidValue: there are not so many GPUs, or too few cores for so many processes.
        Unsupported: the GPUs differ.
        RankLost: a process failed, died or took too long.
    """
    num_gpus, num_cores = torch.cuda.device_count(), num_usable_cores()
    max_devices = num_gpus or _MAX_PROCESSES_PER_CORE * num_cores
    if not 1 <= num_devices <= max_devices:
        raise InvalidValue(
            field="devices",
            value=num_devices,
            limit=f"must be from 1 to {max_devices}, for this machine has "
            + (f"{num_gpus} GPUs" if num_gpus else f"{num_cores} cores"),
            remedy="Choose a number in that range",
        )
    device_type = "cuda" if num_gpus else "cpu"
    ceilings = measure_shared_ceilings(
        num_devices,
        device_type=device_type,
        dtypes=_DTYPES[device_type],
        num_threads=max(1, num_cores // num_devices),
        deadline_s=_DEADLINE_S + _DEADLINE_S_PER_DEVICE * num_devices,
    )
    source = (
        f"measured by alpage hardware on {date.today().isoformat()}, {num_devices} processes "
        f"at once, PyTorch {torch.__version__}"
    )
    device = (
        _gpu(ceilings, num_devices, source) if num_gpus else _cpu(ceilings, num_devices, source)
    )
    fit = fit_link(ceilings.collectives) if num_devices > 1 else None
    link = Link(
        name=("NCCL" if num_gpus else "gloo") if fit else "none: one device",
        topology="switch",
        bytes_per_s=fit.bytes_per_s if fit else device.memory_bytes_per_s,
        latency_s=fit.latency_s if fit else 0.0,
        source=source,
    )
    cluster = Cluster(
        name=f"local-{num_devices}",
        device=device,
        num_hosts=1,
        devices_per_host=num_devices,
        link=link,
    )
    return Calibration(
        cluster=cluster,
        collectives=ceilings.collectives,
        worst_ratio=fit.worst_ratio if fit else 1.0,
    )


def _cpu(ceilings: SharedCeilings, num_devices: int, source: str) -> Device:
    return Device(
        name=cpu_name() if num_devices == 1 else f"{cpu_name()}, shared by {num_devices}",
        kind="cpu",
        flops_per_s=ceilings.flops_per_s,
        memory_bytes=available_memory_bytes() // num_devices,
        memory_bytes_per_s=ceilings.memory_bytes_per_s,
        source=source,
    )


def _gpu(ceilings: SharedCeilings, num_devices: int, source: str) -> Device:
    properties = [torch.cuda.get_device_properties(index) for index in range(num_devices)]
    names = {of_gpu.name for of_gpu in properties}
    if len(names) > 1:
        raise Unsupported(
            field="devices",
            value=num_devices,
            limit=f"the GPUs differ: {', '.join(sorted(names))}",
            remedy="Choose equal ones with CUDA_VISIBLE_DEVICES",
        )
    return Device(
        name=names.pop(),
        kind="gpu",
        flops_per_s=ceilings.flops_per_s,
        memory_bytes=min(of_gpu.total_memory for of_gpu in properties),
        memory_bytes_per_s=ceilings.memory_bytes_per_s,
        source=source,
    )
