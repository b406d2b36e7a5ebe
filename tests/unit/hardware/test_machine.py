"""Hardware on made-up machines: a folder with the files of /proc and /sys."""

import os

import pytest

from alpage.hardware import (
    available_memory_bytes,
    cpu_features,
    cpu_name,
    has_bf16_compute,
    num_usable_cores,
)
from alpage.units import GiB, KiB, MiB

MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 8388608 kB\n"  # 8 GiB
V1_UNLIMITED = "9223372036854771712"


def machine(path, files):
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{text}\n")
    return path


MEMORY_CASES = {
    "no groups": ({}, 8 * GiB),
    "version 2, in a container": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 4 * GiB,
            "sys/fs/cgroup/memory.current": 3 * GiB,
            "sys/fs/cgroup/memory.stat": f"anon {2 * GiB}\nfile {GiB}\ninactive_file {512 * MiB}",
        },
        GiB + 512 * MiB,
    ),
    "version 2, a limit further up": (
        {
            "proc/self/cgroup": "0::/user/session",
            "sys/fs/cgroup/user/session/memory.max": "max",
            "sys/fs/cgroup/user/session/memory.current": MiB,
            "sys/fs/cgroup/user/memory.max": 2 * GiB,
            "sys/fs/cgroup/user/memory.current": MiB,
        },
        2 * GiB - MiB,
    ),
    "version 2, no limit": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"},
        8 * GiB,
    ),
    "version 1, the host's path": (
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": GiB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 256 * MiB,
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {4 * KiB}",
        },
        GiB - 256 * MiB + 4 * KiB,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GiB,
        },
        8 * GiB,
    ),
    "over its limit": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": GiB,
            "sys/fs/cgroup/memory.current": 2 * GiB,
        },
        0,
    ),
}


@pytest.mark.parametrize(("files", "expected"), MEMORY_CASES.values(), ids=MEMORY_CASES)
def test_available_memory(files, expected, tmp_path):
    assert available_memory_bytes(machine(tmp_path, {"proc/meminfo": MEMINFO} | files)) == expected


def test_available_memory_without_proc(tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory_bytes(tmp_path) == physical // 2


QUOTA_CASES = {
    "no limit": ({}, 8),
    "version 2": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
    "less than a core": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    "more than there is": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"},
        8,
    ),
    "unlimited": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    "version 1": (
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/docker/1",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": 300000,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        },
        3,
    ),
    "version 1, unlimited": (
        {
            "proc/self/cgroup": "9:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        },
        8,
    ),
}


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="control groups are Linux's")  # noqa: PTH112
@pytest.mark.parametrize(("files", "expected"), QUOTA_CASES.values(), ids=QUOTA_CASES)
def test_usable_cores(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert num_usable_cores(machine(tmp_path, files)) == expected


FEATURE_CASES = {
    "zen 4": ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni", True),
    "sapphire rapids": ("flags : avx512f amx_bf16", True),
    "haswell": ("flags : fpu avx2 fma", False),
    "neoverse v1": ("Features\t: fp asimd bf16 i8mm", True),
    "no such line": ("processor : 0", False),
}


@pytest.mark.parametrize(("cpuinfo", "expected"), FEATURE_CASES.values(), ids=FEATURE_CASES)
def test_bf16_compute(cpuinfo, expected, tmp_path):
    features = cpu_features(machine(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert has_bf16_compute(features) == expected


def test_name(tmp_path):
    cpuinfo = "processor : 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\nflags : fpu"
    assert cpu_name(machine(tmp_path, {"proc/cpuinfo": cpuinfo})) == "AMD EPYC 9R14"


def test_without_proc(tmp_path):
    assert cpu_features(tmp_path) == frozenset()
    assert cpu_name(tmp_path)


def test_this_machine():
    assert available_memory_bytes() > MiB
    assert 1 <= num_usable_cores() <= os.cpu_count()
