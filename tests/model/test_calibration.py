"""This machine as a cluster: groups of processes that end in any case, and what they measure."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from alpage.errors import InvalidValue, RankLost
from alpage.hardware import resolve_cluster
from alpage.runtime import calibrate, calibration, shared_ceilings
from alpage.runtime.link_fit import KINDS, TimedCollective
from alpage.runtime.local_group import run_on_ranks
from alpage.runtime.shared_ceilings import SharedCeilings, measure_shared_ceilings

# What starting a process and importing PyTorch may take on a busy machine.
START_S = 60.0


def sum_of_ranks(rank, factor):
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    return {"rank": rank, "total": factor * total.item()}


def fail_on_one(rank):
    if rank == 1:
        raise ZeroDivisionError("by rank 1")
    dist.barrier()


def die_on_one(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hang(rank):
    time.sleep(1000)


def run(work, *arguments, num_ranks=2, deadline_s=START_S):
    return run_on_ranks(work, num_ranks, arguments, backend="gloo", deadline_s=deadline_s)


def test_answers_come_in_the_order_of_ranks():
    assert run(sum_of_ranks, 10.0, num_ranks=3) == [
        {"rank": rank, "total": 30.0} for rank in range(3)
    ]
    assert multiprocessing.active_children() == []


FAULTS = {
    "fails": (fail_on_one, START_S, "rank=1: its process failed: ZeroDivisionError: by rank 1"),
    "dies": (die_on_one, START_S, "rank=1: its process died"),
    "hangs": (hang, 3.0, "rank=0: its process has not answered within 3 s"),
}


@pytest.mark.parametrize(("work", "deadline_s", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_error_and_leaves_nothing_running(work, deadline_s, message):
    start_s = time.monotonic()
    with pytest.raises(RankLost) as error:
        run(work, deadline_s=deadline_s)
    # The other rank waits in a barrier for its partner: it was not waited for.
    assert time.monotonic() - start_s < START_S
    assert str(error.value).startswith(message)
    assert multiprocessing.active_children() == []


def test_an_interrupt_leaves_nothing_running():
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(hang)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    assert multiprocessing.active_children() == []


def timed(kind, full_bytes):
    """Over a link of 1 GB/s with hops of 0.1 ms."""
    rounds = 2 if kind == "all_reduce" else 1
    time_s = rounds * (1e-4 + full_bytes / 2 / 1e9)
    return TimedCollective(kind=kind, num_ranks=2, full_bytes=full_bytes, time_s=time_s)


CEILINGS = SharedCeilings(
    flops_per_s={"float32": 2e11, "bfloat16": 4e11},
    memory_bytes_per_s=2e10,
    collectives=tuple(timed(kind, size) for kind in KINDS for size in (2**14, 2**20, 2**24)),
)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A machine of two cores on which measuring takes no time."""

    def measure(num_ranks, *, num_threads, **_):
        assert num_threads == max(1, 2 // num_ranks)
        return CEILINGS

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(calibration, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(calibration, "measure_shared_ceilings", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_command_keeps_what_it_measured(measured, command_line):
    status, out, err = command_line("hardware")
    assert status == 0
    assert "kept in" in err
    lines = [line.split("  ") for line in out.splitlines()]
    assert [line[0] for line in lines if line[0].startswith("local")] == ["local-1", "local-2"]
    local = resolve_cluster("local")
    assert local == resolve_cluster("local-2")
    assert dict(local.device.flops_per_s) == CEILINGS.flops_per_s
    assert (local.num_devices, local.device.kind, local.link.name) == (2, "cpu", "gloo")
    assert local.device.memory_bytes < resolve_cluster("local-1").device.memory_bytes
    assert local.link.bytes_per_s == pytest.approx(1e9)
    assert local.link.latency_s == pytest.approx(1e-4)


def test_command_in_json(measured, command_line):
    status, out, _ = command_line("hardware", "--devices", "4", "--json")
    assert status == 0
    (cluster,) = json.loads(out)["clusters"]
    assert cluster["name"] == "local-4"
    assert len(cluster["collectives"]) == len(CEILINGS.collectives)
    assert resolve_cluster("local-4").device.flops_per_s == cluster["device"]["flops_per_s"]
    with pytest.raises(InvalidValue, match="Run: alpage hardware"):
        resolve_cluster("local")


@pytest.mark.parametrize("num_devices", [0, 17])
def test_refuses_numbers_that_the_machine_has_not(measured, num_devices):
    with pytest.raises(InvalidValue, match="must be from 1 to 16, for this machine has 2 cores"):
        calibrate(num_devices)


@pytest.mark.slow
def test_processes_share_the_machine():
    ceilings = measure_shared_ceilings(
        2, device_type="cpu", dtypes=("float32",), num_threads=1, deadline_s=300.0
    )
    assert ceilings.flops_per_s["float32"] > 1e8
    assert ceilings.memory_bytes_per_s > 1e8
    shapes = {(one.kind, one.full_bytes) for one in ceilings.collectives}
    assert shapes == {(kind, size) for kind in KINDS for size in shared_ceilings._NUM_CALLS}
    for kind in KINDS:
        by_size = {one.full_bytes: one.time_s for one in ceilings.collectives if one.kind == kind}
        assert 0 < by_size[min(by_size)] < by_size[max(by_size)]
