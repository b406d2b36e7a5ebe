"""Memory: how much of it a process can still take."""

import os
from pathlib import Path

from alpage.hardware.cgroup import memory_left_bytes


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be taken without pushing anything out.

    On Linux that is what the machine has free, or what a control group leaves if that is less;
    elsewhere half of the machine's memory.

    Args:
        root: where /proc and /sys lie.
    """
    available = _meminfo_available_bytes(root)
    if available is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    left = memory_left_bytes(root)
    return available if left is None else max(0, min(available, left))


def _meminfo_available_bytes(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None
