"""What a soak holds to be growth: memory that was not there, not memory that was not used."""

import mmap
import os
import subprocess
import sys

import pytest
from benchmarks.soak_memory import Grown

from alpage.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

SIZE = 64 * MiB
SLACK = 8 * MiB


def touched(memory):
    """Write to every page."""
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)


@pytest.fixture
def memory():
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as reserved:
        yield reserved


def test_first_use_of_what_was_reserved_is_no_growth(memory):
    pid = os.getpid()
    grown = Grown([pid])
    before = grown.bytes_of(pid)
    touched(memory)
    assert abs(grown.bytes_of(pid) - before) < SLACK


def test_what_is_taken_later_is_growth_until_it_is_given_back():
    pid = os.getpid()
    grown = Grown([pid])
    before = grown.bytes_of(pid)
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as later:
        assert grown.bytes_of(pid) - before < SLACK
        touched(later)
        assert grown.bytes_of(pid) - before > SIZE - SLACK
    assert grown.bytes_of(pid) - before < SLACK


def test_process_that_has_ended_holds_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as program:
        grown = Grown([program.pid])
    assert grown.bytes_of(program.pid) == 0
