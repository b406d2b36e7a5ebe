"""CPU: what the processor of this machine can do, and how much of it is ours."""

import os
import platform
import sys
from collections.abc import Collection
from pathlib import Path

from alpage.hardware.cgroup import cpu_quota

# Instructions that multiply bfloat16, as Linux names them: AVX-512 and AMX on x86, the Arm
# extension.
_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def num_usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may run on, at least one.

    On Linux these are the cores it is bound to, or the time that a control group allows, in whole
    cores, if that is less.

    Args:
        root: where /proc and /sys lie.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    num_cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return num_cores if quota is None else max(1, min(num_cores, int(quota)))


def cpu_features(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction sets that Linux names for this CPU; empty on other systems.

    Args:
        root: where /proc lies.
    """
    return frozenset(_cpuinfo(root, "flags", "Features").split())


def cpu_name(root: Path = Path("/")) -> str:
    """Return what the CPU calls itself, or else its architecture, such as "arm64".

    Args:
        root: where /proc lies.
    """
    return _cpuinfo(root, "model name") or platform.machine() or "CPU"


def has_bf16_compute(features: Collection[str]) -> bool:
    """Return whether such a CPU multiplies bfloat16 itself, and not by way of float32."""
    return not _BF16_FEATURES.isdisjoint(features)


def _cpuinfo(root: Path, *names: str) -> str:
    """The first value under one of these names that Linux knows of the CPU, "" if there is none."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""
