"""Memory: how much of it a process can still take."""

import os
from pathlib import Path

# Where each version of control groups keeps a group's limit and its use.
_CGROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be taken without pushing anything out.

    That is the least of what the machine has free and what a control group leaves, on Linux;
    elsewhere half of the machine's memory.

    Args:
        root: where /proc and /sys lie.
    """
    candidates = [_meminfo_available(root), *(_cgroup_left(root, *pair) for pair in _CGROUP_FILES)]
    known = [num_bytes for num_bytes in candidates if num_bytes is not None]
    if known:
        return max(0, min(known))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _meminfo_available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_left(root: Path, limit_file: str, usage_file: str) -> int | None:
    limit, usage = _lines(root / limit_file), _lines(root / usage_file)
    if not limit or not usage or not limit[0].isdigit():
        return None
    return int(limit[0]) - int(usage[0])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
