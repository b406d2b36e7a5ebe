"""Control groups: what a container or a service manager leaves to this process, on Linux.

A limit of any group above the process counts. Version 2 has one tree of groups, version 1 one for
each controller; inside a container the path that Linux names may be that of the host, and only the
root of the tree is there.
"""

from collections.abc import Iterator
from pathlib import Path

_FOLDER = "sys/fs/cgroup"


def memory_left_bytes(root: Path) -> int | None:
    """Return the bytes that the tightest group still lets us take, None without a limit."""
    left = [
        limit - _int(folder / usage) + _reclaimable_bytes(folder, statistic)
        for controller, maximum, usage, statistic in (
            ("", "memory.max", "memory.current", "inactive_file"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        )
        for folder in _folders(root, controller)
        if (limit := _int(folder / maximum))
    ]
    return min(left, default=None)


def cpu_quota(root: Path) -> float | None:
    """Return the cores' worth of time that the tightest group allows, None without a limit."""
    quotas = [
        quota_us / _int(folder / "cpu.cfs_period_us")
        for folder in _folders(root, "cpu")
        if (quota_us := _int(folder / "cpu.cfs_quota_us"))
    ]
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's group and of those above it; `controller` is "" in version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            top = root / _FOLDER / controller
            group = top / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(top))


def _reclaimable_bytes(folder: Path, statistic: str) -> int:
    """Bytes of files that were read and are kept in memory until something needs the room."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == statistic:
            return int(value)
    return 0


def _int(path: Path) -> int:
    """Return the number in a file; 0 where there is none, or a word such as "max", or -1."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
