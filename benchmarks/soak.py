"""Soak: a server under mixed load for long, with clients that leave and clients that send nonsense.

    python -m benchmarks.soak [MODEL] [--minutes 30] [--kill engine|rank] [--serve-options "..."]

At the end every request has had an answer, no page is held, and memory has not grown beyond what
was reserved at the start (`soak_memory.py`); else the status is 1.

With --kill engine that is a process of its own, which is killed once a minute: the server starts
another, and what was under way is answered by that or with an error. With --kill rank the engine is
cut over two processes, one of which is killed once a minute: what was under way is answered with an
error, nothing is left of the server when it is told to end, and the next one serves at the same
port.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

import httpx

from alpage.load import server_of
from alpage.units import MiB
from benchmarks.processes import children_of, is_alive
from benchmarks.soak_acts import Act, Unanswered, acts
from benchmarks.soak_memory import ENVIRONMENT, Grown

_ANSWER_S = 120.0
_SAMPLE_S = 1.0
# Memory is compared between the second quarter of a run and the last: before, buffers fill, caches
# of compiled forms and of shapes among them.
_MIN_SAMPLES = 40
_SHOWN_SAMPLES = 24
_MAX_GROWTH_BYTES = 24 * MiB
# No failure of the server's: what it says of it, to whom a killed engine owes an answer.
_KILLED = {"500", "503", "stream failed: engine_lost", "stream failed: internal_error"}
Victim: TypeAlias = Literal["engine", "rank"]
VICTIMS: Final[Mapping[Victim, tuple[str, ...]]] = {
    "engine": ("--engine", "process"),
    "rank": ("--devices", "2"),
}
_FINE = {"200", "400", "404", "413", "415", "429", "left"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A soak.

    Attributes:
        model: that is served.
        duration_s: seconds of load, without those in which servers start and end.
        kill_every_s: seconds between kills; None: nothing is killed.
        victim: what is killed.
        num_clients: that act at a time.
        options: of `alpage serve`.
        seed: of what clients do.
    """

    model: str
    duration_s: float
    kill_every_s: float | None = None
    victim: Victim = "engine"
    num_clients: int = 24
    options: tuple[str, ...] = ()
    seed: int = 0


@final
@dataclass(slots=True)
class Report:
    """What was seen.

    Attributes:
        answers: how many acts came to which end, by the act's name.
        problems: what should not have been.
        memory: bytes that the server's processes took besides what they had reserved when load
            began, of each server in turn.
        num_kills: processes that were killed.
    """

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: list[list[int]] = field(default_factory=list)
    num_kills: int = 0


@final
class Soak:
    """Clients that act on one server after another."""

    def __init__(self, plan: Plan) -> None:
        self.report = Report()
        self._plan = plan
        self._may_act = asyncio.Event()
        self._is_killed = False
        self._is_over = False
        self._num_acting = 0
        self._url = ""
        self._grown = Grown([])

    async def run(self) -> Report:
        """Return what was seen of the whole plan."""
        clients = [asyncio.create_task(self._act(n)) for n in range(self._plan.num_clients)]
        port, left_s = 0, self._plan.duration_s
        # A server outlives its engine, but not a rank.
        every_s = self._plan.kill_every_s if self._plan.victim == "rank" else None
        while left_s > 0:
            is_killed = every_s is not None and every_s < left_s
            life_s = min(left_s, every_s or left_s)
            port = await self._life(port, life_s, is_killed=is_killed)
            left_s -= life_s
        self._is_over = True
        self._may_act.set()
        await asyncio.gather(*clients)
        return self.report

    async def _life(self, port: int, duration_s: float, *, is_killed: bool) -> int:
        """Have a server under load for some seconds, and perhaps kill it; return its port."""
        plan, said = self._plan, list[str]()
        options = ("--port", str(port), *plan.options)
        async with AsyncExitStack() as stack:
            server = server_of(plan.model, options, said.append, environment=ENVIRONMENT)
            self._url, pid = await asyncio.to_thread(server.__enter__)
            stack.push_async_callback(asyncio.to_thread, server.__exit__, None, None, None)
            self._is_killed = False
            self._may_act.set()
            self._grown = Grown({pid, *children_of(pid)})
            watcher = asyncio.create_task(self._watch(pid))
            if is_killed:
                await asyncio.sleep(duration_s)
                await self._kill_rank(pid)
            else:
                await self._pass(pid, duration_s)
            self._may_act.clear()
            await self._until(lambda: self._num_acting == 0, "a client waits still")
            watcher.cancel()
            if not is_killed:
                await self._check_idle()
                self.report.problems += [line for line in said if line.startswith("ERROR")][:5]
            family = {pid, *children_of(pid)}
        await self._until(lambda: not any(map(is_alive, family)), "a process is left")
        self._check_memory()
        return int(self._url.rpartition(":")[2])

    async def _act(self, number: int) -> None:
        """Act until the soak is over, one act after another."""
        draw = random.Random(self._plan.seed * 1_000 + number)
        weights, known = zip(*acts(has_chat=True), strict=True)
        while True:
            await self._may_act.wait()
            if self._is_over:
                return
            self._num_acting += 1
            async with httpx.AsyncClient(base_url=self._url, timeout=_ANSWER_S) as client:
                for _ in range(draw.randint(1, 10)):
                    if self._may_act.is_set():
                        await self._once(draw.choices(known, weights)[0], client, draw)
            self._num_acting -= 1

    async def _once(self, act: Act, client: httpx.AsyncClient, draw: random.Random) -> None:
        name, num_kills, is_down = act.__name__, self.report.num_kills, self._is_killed
        try:
            end = await act(client, draw)
        except (Unanswered, httpx.HTTPError, OSError) as error:
            end = "no answer"
            self.report.problems.append(f"{name}: {type(error).__name__}: {error}")
        self.report.answers[name, end] += 1
        has_reason = is_down or self.report.num_kills != num_kills
        if end not in _FINE and not (end in _KILLED and has_reason):
            self.report.problems.append(f"{name}: {end}")

    async def _pass(self, pid: int, duration_s: float) -> None:
        """Let time pass, and perhaps kill the engine now and then."""
        loop, every_s = asyncio.get_running_loop(), self._plan.kill_every_s
        end_s = loop.time() + duration_s
        while every_s is not None and loop.time() + every_s < end_s:
            await asyncio.sleep(every_s)
            await self._kill_engine(pid)
        await asyncio.sleep(max(0.0, end_s - loop.time()))

    def _kill(self, pid: int) -> set[int]:
        """Kill one of those that a server has started; return all of them."""
        children = children_of(pid)
        assert children, f"who is killed has a process of its own: {VICTIMS}"
        self._is_killed = True
        os.kill(random.Random(self.report.num_kills).choice(sorted(children)), signal.SIGKILL)
        self.report.num_kills += 1
        return children

    async def _kill_engine(self, pid: int) -> None:
        """Kill the engine; the server has another."""
        killed = self._kill(pid)
        await self._until(lambda: not any(map(is_alive, killed)), "a process is left")
        async with httpx.AsyncClient(base_url=self._url, timeout=_ANSWER_S) as client:

            async def is_ready() -> bool:
                # A server that has not noticed yet still says that it is ready.
                has_another = bool(children_of(pid) - killed)
                return has_another and (await client.get("/ready")).status_code == httpx.codes.OK

            await self._until(is_ready, "the server does not start another engine")
        self._grown.add(children_of(pid))
        self._is_killed = False

    async def _kill_rank(self, pid: int) -> None:
        """Kill a rank; the server says that it is lost."""
        self._kill(pid)
        async with httpx.AsyncClient(base_url=self._url, timeout=_ANSWER_S) as client:

            async def is_lost() -> bool:
                return (await client.get("/health")).status_code == httpx.codes.SERVICE_UNAVAILABLE

            await self._until(is_lost, "the server does not notice that its engine is lost")

    async def _check_idle(self) -> None:
        """Nothing is held once nobody waits."""
        async with httpx.AsyncClient(base_url=self._url, timeout=_ANSWER_S) as client:

            async def is_idle() -> bool:
                text = (await client.get("/metrics")).text
                names = ("requests_running", "requests_waiting", "kv_pages_held")
                return not any(float(re.search(rf"alpage_{n}{{.*}} (.*)", text)[1]) for n in names)

            await self._until(is_idle, "pages are held, and nobody waits")

    async def _watch(self, pid: int) -> None:
        """Note how much memory is taken."""
        samples = list[int]()
        self.report.memory.append(samples)
        while True:
            samples.append(sum(map(self._grown.bytes_of, {pid, *children_of(pid)})))
            await asyncio.sleep(_SAMPLE_S)

    def _check_memory(self) -> None:
        samples = self.report.memory[-1]
        if len(samples) < _MIN_SAMPLES:
            return
        quarter = len(samples) // 4
        before = statistics.median(samples[quarter : 2 * quarter])
        after = statistics.median(samples[-quarter:])
        if after - before > _MAX_GROWTH_BYTES:
            grown = f"from {before / MiB:.0f} to {after / MiB:.0f} MiB"
            self.report.problems.append(f"memory has grown {grown}")

    async def _until(self, is_so: Callable[[], bool | Awaitable[bool]], problem: str) -> None:
        """Wait for what has to come; what does not come is a problem."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                while True:
                    answer = is_so()
                    if answer if isinstance(answer, bool) else await answer:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self.report.problems.append(problem)


def to_text(report: Report) -> str:
    """Return a report for people."""
    lines = [f"{name:12} {end:32} {n:>8,}" for (name, end), n in sorted(report.answers.items())]
    lines.append(f"{report.answers.total():,} acts, {report.num_kills} kills")
    for samples in report.memory:
        shown = samples[:: -(-len(samples) // _SHOWN_SAMPLES) or 1]
        lines.append(f"memory in MiB: {' '.join(f'{each / MiB:.0f}' for each in shown)}")
    lines += [f"PROBLEM {problem}" for problem in report.problems[:20]]
    lines.append(f"{len(report.problems)} problems")
    return "\n".join(lines)


def main() -> None:
    """Soak a server, and print what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill", choices=VICTIMS, help="what is killed once a minute")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve-options", default="--max-num-seqs 16 --kv-memory 256MiB")
    options = parser.parse_args()
    plan = Plan(
        model=options.model,
        duration_s=60 * options.minutes,
        kill_every_s=60.0 if options.kill else None,
        victim=options.kill or "engine",
        num_clients=options.clients,
        options=(*options.serve_options.split(), *VICTIMS.get(options.kill, ())),
        seed=options.seed,
    )
    report = asyncio.run(Soak(plan).run())
    print(to_text(report))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
