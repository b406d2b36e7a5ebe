"""Driver: start an engine, warm it up, run one workload and write down how it went.

    python -m benchmarks.peers.drivers.NAME TASK.json RESULT.json

It runs where only the standard library and one engine are at hand.
"""

import json
import os
import random
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

# As in the workloads: ids that every vocabulary of the Llama family has, and that are special in
# none.
_PLAIN_IDS = (1_000, 32_000)
_NUM_RUNS = 2
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a workload.

    Attributes:
        prompt: token ids.
        output_tokens: that every continuation has, exactly: ends of text are ignored.
        n: continuations; more than one are sampled at temperature 1.
        beam_width: hypotheses of a beam search; None: none.
    """

    prompt: list[int]
    output_tokens: int
    n: int = 1
    beam_width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an engine is to do.

    Attributes:
        model: a directory or a file, as the engine reads it.
        weights: what they are kept in, as the engine calls it.
        threads: cores it may use.
        workload: a file of requests.
        is_stream: whether the requests come one after another, each timed by the token.
    """

    model: str
    weights: str
    threads: int
    workload: str
    is_stream: bool


class Driver(ABC):
    """An engine that has loaded its model."""

    @abstractmethod
    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once; return the number of output tokens."""

    @abstractmethod
    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request alone, greedily, and tell of each token as it comes."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what the engine started."""


def main(load: Callable[[Task], Driver]) -> None:
    """Do the task that the command line names."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    # Libraries take as many threads as they see cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    lines = Path(task.workload).read_text(encoding="utf-8").splitlines()
    requests = [Request(**json.loads(line)) for line in lines]
    driver = load(task)
    try:
        found = measure(driver, requests, is_stream=task.is_stream)
    finally:
        driver.close()
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


def measure(
    driver: Driver,
    requests: Sequence[Request],
    *,
    is_stream: bool,
    age: Callable[[], float] | None = None,
) -> Mapping[str, float]:
    """Return the figures of a workload.

    A batch runs once to warm up: a virtual machine gives memory slowly, and what an engine takes
    for keys and values it takes once. Then come the runs that count. Each has tokens of its own, so
    no cache knows them, with the same ones shared among requests. A stream warms up on one request.

    Args:
        driver: has been loaded just now.
        requests: of the workload.
        is_stream: whether they come one after another, each timed by the token.
        age: returns the seconds since the start; None: of this process.

    Returns:
        start_s, from the process's start to its first token; output_tokens of a run, wall_s, the
        median of the runs, first_wall_s, of the warm-up, and peak_rss_bytes; of a stream the
        medians ttft_s and itl_s as well.
    """
    draw = random.Random(1)
    firsts: list[float] = []
    first = Request(prompt=_random(draw, 16), output_tokens=2)
    driver.stream(first, lambda: firsts.append((age or _age_s)()))
    figures: dict[str, float] = {"start_s": firsts[0]}
    if is_stream:
        driver.stream(_with_other_tokens(requests[:1], draw)[0], lambda: None)
        figures |= _streams(driver, requests)
    else:
        figures |= _batches(driver, requests, draw)
    wanted = sum(request.output_tokens * (request.beam_width or request.n) for request in requests)
    assert figures["output_tokens"] == wanted, f"{figures['output_tokens']} tokens, not {wanted}"
    return figures | {"peak_rss_bytes": float(peak_rss_bytes(os.getpid()))}


def _batches(driver: Driver, requests: Sequence[Request], draw: random.Random) -> dict[str, float]:
    walls_s = []
    for _ in range(1 + _NUM_RUNS):
        others = _with_other_tokens(requests, draw)
        begin_s = time.monotonic()
        num_output = driver.batch(others)
        walls_s.append(time.monotonic() - begin_s)
    first_s, *counting_s = walls_s
    return {"output_tokens": num_output, "wall_s": median(counting_s), "first_wall_s": first_s}


def _streams(driver: Driver, requests: Sequence[Request]) -> dict[str, float]:
    firsts: list[float] = []
    gaps: list[float] = []
    num_output = 0
    begin_s = time.monotonic()
    for request in requests:
        times: list[float] = [time.monotonic()]
        driver.stream(request, lambda to=times: to.append(time.monotonic()))  # type: ignore[misc]
        first, *others = (later - earlier for earlier, later in pairwise(times))
        firsts.append(first)
        gaps += others
        num_output += len(times) - 1
    return {
        "output_tokens": num_output,
        "wall_s": time.monotonic() - begin_s,
        "ttft_s": median(firsts),
        "itl_s": median(gaps),
    }


def _with_other_tokens(requests: Sequence[Request], draw: random.Random) -> list[Request]:
    """Return the requests with each token replaced by another, the same one wherever it is."""
    ids = range(*_PLAIN_IDS)
    other = dict(zip(ids, draw.sample(ids, len(ids)), strict=True))
    return [
        replace(request, prompt=[other.get(token, token) for token in request.prompt])
        for request in requests
    ]


def _random(draw: random.Random, num_tokens: int) -> list[int]:
    return [draw.randrange(*_PLAIN_IDS) for _ in range(num_tokens)]


def _age_s() -> float:
    """Return the seconds since this process was started, its interpreter's start included."""
    start_ticks = int(_stat(Path("/proc/self"))[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / _CLOCK_TICKS_PER_S


def peak_rss_bytes(root: int) -> int:
    """Return the peak memory of a process and of those it started, added up.

    What they share, such as libraries, counts for each.
    """
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(_stat(folder)[1])
        except OSError:  # it has ended
            continue
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(_peak_bytes(Path("/proc", str(pid))) for pid in family)


def _stat(folder: Path) -> list[str]:
    """Return what the kernel says of a process, from its state on."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _peak_bytes(folder: Path) -> int:
    try:
        status = (folder / "status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:"), 0)


def post(url: str, body: Mapping[str, Any]) -> Any:
    """Return what a server answers, as an open response."""
    data = json.dumps(body).encode()
    head = {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url, data, head), timeout=3600)
