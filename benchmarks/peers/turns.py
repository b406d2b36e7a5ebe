"""Turns: one engine on one workload, in processes that end with it, and the file that keeps them.

An engine is started anew for each turn. Kept alive, ten engines would not fit into the memory of a
small machine, threads that spin would slow the others, and caches of prefixes would know the next
round's prompts.
"""

import dataclasses
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from benchmarks.peers.drivers.driver import Task
from benchmarks.peers.engines import STREAM, Engine

_ROOT = Path(__file__).parents[2]
_LAST_WORDS = 300


class EngineFailed(Exception):
    """An engine ended, or took too long; its last words say why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What came of one engine on one workload.

    Attributes:
        round: from 1; ratios are of turns of one round.
        engine: its name.
        workload: its name; W5's turns name the rate as well, as in "w5 0.5/s".
        figures: by name; empty after a failure.
        failure: the last words of an engine that failed; None: it did not.
    """

    round: int
    engine: str
    workload: str
    figures: Mapping[str, float]
    failure: str | None = None


def load_turns(path: Path) -> list[Turn]:
    """Return the turns that a file keeps, of those that were taken again the last.

    There are none if there is no file.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    turns = [Turn(**json.loads(line)) for line in lines]
    return list({(turn.round, turn.engine, turn.workload): turn for turn in turns}.values())


def append_turns(path: Path, turns: Sequence[Turn]) -> None:
    """Add turns to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(turn)) + "\n" for turn in turns)


def is_done(turns: Sequence[Turn], number: int, engine: str, workload: str) -> bool:
    """Return whether an engine has done a workload in a round, and not failed."""
    return any(
        (turn.round, turn.engine, turn.workload.split()[0]) == (number, engine, workload)
        and turn.failure is None
        for turn in turns
    )


def order(engines: Sequence[Engine], number: int) -> Iterator[Engine]:
    """Yield a round's engines; who comes first changes, so that nobody is always warm."""
    start = (number - 1) % len(engines) if engines else 0
    yield from engines[start:]
    yield from engines[:start]


def offline(
    engine: Engine, directory: Path, requests: Path, *, threads: int, timeout_s: float
) -> Mapping[str, float]:
    """Return an engine's figures on a file of requests.

    Raises:
        EngineFailed: it ended without any, or took too long.
    """
    task = Task(
        model=str(directory / engine.model),
        weights=engine.weights,
        threads=threads,
        workload=str(requests),
        is_stream=requests.stem == STREAM,
    )
    with tempfile.TemporaryDirectory() as folder:
        given, found, said = (Path(folder, name) for name in ("task.json", "found.json", "said"))
        given.write_text(json.dumps(dataclasses.asdict(task)), encoding="utf-8")
        module = f"benchmarks.peers.drivers.{engine.driver}"
        command = [str(engine.python(directory)), "-m", module, str(given), str(found)]
        variables = engine.variables(directory) | {"OMP_NUM_THREADS": str(threads)}
        with said.open("wb") as output:
            # Of its own session, so that what it starts can be ended with it.
            program = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            _wait(program, timeout_s)
        if not found.exists():
            raise EngineFailed(last_words(said.read_text(encoding="utf-8", errors="replace")))
        figures: dict[str, float] = json.loads(found.read_text(encoding="utf-8"))
        return figures | {"output_tokens_per_s": figures["output_tokens"] / figures["wall_s"]}


def last_words(text: str) -> str:
    """Return the end of what a program said, of its last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return ([*lines, *errors] or ["nothing"])[-1][-_LAST_WORDS:]


def end_session(program: "subprocess.Popen[bytes]") -> None:
    """End a program that has a session of its own, and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def _wait(program: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    try:
        program.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"took more than {timeout_s:.0f} s") from None
    finally:
        end_session(program)
