"""Engine process: processes that die, lie or hang, and when there is no other."""

import time
from queue import Queue

import pytest
from benchmarks.processes import is_alive

from alpage.errors import RankLost, Unsupported
from alpage.serve.http import engine_process
from alpage.serve.http.engine_messages import Accepted, Beat, Down, Lost, Ready, Take
from alpage.serve.http.engine_process import EngineProcess
from engine_stub import LIMITS

DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(engine_process, "_PROGRAM", "from engine_stub import main; main()")
    monkeypatch.setattr(engine_process, "_BACKOFF_S", 0.01)
    monkeypatch.setattr(engine_process, "_MAX_VAIN", 2)


class Begun:
    """An engine that is there, and what it says."""

    def __init__(self, mood):
        self.notes = []
        self.process = EngineProcess(mood)
        self.process.wait(self.notes.append)
        self.events = Queue()
        self.process.start(self.events.put)

    def take(self, number):
        self.process.send(Take(number, [], False))

    def says(self, *kinds):
        found = [self.events.get(timeout=DEADLINE_S) for _ in kinds]
        assert tuple(map(type, found)) == kinds
        return found


def test_engine_is_talked_with_until_it_is_stopped():
    begun = Begun("is well")
    assert begun.process.limits == LIMITS
    assert begun.notes == ["loading"]
    begun.take(1)
    assert begun.says(Accepted) == [Accepted(1)]
    pid = begun.process.pid
    begun.process.stop()
    assert not is_alive(pid)
    assert begun.events.empty()
    assert begun.process.failure is None


@pytest.mark.parametrize("mood", ["dies after a step", "makes no sense", "lies about lengths"])
def test_engine_that_dies_is_followed_by_another(mood):
    begun = Begun(mood)
    pids = set()
    # However often, if each of them has done something.
    for number in range(3 if mood == "dies after a step" else 1):
        pids.add(begun.process.pid)
        begun.take(number)
        begun.says(Accepted, Beat, Down, Ready)
    assert begun.process.pid not in pids
    begun.process.stop()
    assert not any(map(is_alive, pids))


def test_engines_that_die_in_vain_have_an_end():
    begun = Begun("dies without a step")
    for number in range(engine_process._MAX_VAIN - 1):
        begun.take(number)
        begun.says(Accepted, Down, Ready)
    begun.take(9)
    begun.says(Accepted, Down, Lost)
    assert isinstance(begun.process.failure, RankLost)
    begun.process.stop()


def test_engine_that_cannot_be_started_again_is_given_up():
    begun = Begun("dies after a step")
    begun.process._begin = engine_process.encode(engine_process.Begin("is broken", {}))
    begun.take(1)
    begun.says(Accepted, Beat, Down, Lost)
    assert "is none" in str(begun.process.failure)
    begun.process.stop()


def test_errors_of_the_first_start_are_the_callers():
    with pytest.raises(Unsupported, match="Choose"):
        EngineProcess("is broken").wait(print)
    with pytest.raises(RankLost, match="before it was ready"):
        EngineProcess("dies at once").wait(print)


def test_engine_that_does_not_listen_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(engine_process, "_GRACE_S", 0.2)
    begun = Begun("does not listen")
    pid, begin_s = begun.process.pid, time.monotonic()
    begun.process._child.send(bytes(2**22))
    begun.take(1)
    begun.process.stop()
    assert time.monotonic() - begin_s < 5
    assert not is_alive(pid)


def test_stop_does_not_wait_for_another_start(monkeypatch):
    monkeypatch.setattr(engine_process, "_BACKOFF_S", 60.0)
    begun = Begun("dies without a step")
    begun.take(1)
    begun.says(Accepted, Down)
    begin_s = time.monotonic()
    begun.process.stop()
    assert time.monotonic() - begin_s < 5
    assert begun.process.failure is None
