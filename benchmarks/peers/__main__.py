"""Peers: run alpage and the peers that are installed in turn, and print how they compare.

    python -m benchmarks.peers DIRECTORY [--rounds 3] [--engines alpage,vllm] [--workloads w1,w2]

DIRECTORY is what benchmarks.peers.install filled. A round has every engine do every workload, one
engine after the other on one workload, then the next workload; each turn is a process of its own,
warmed up before it is timed. Turns are kept in DIRECTORY/run: the same command goes on where it was
stopped, another one adds to it, and `--rounds 0` prints what is there. Nothing else should run.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.peers.engines import ENGINES, ONLINE, WORKLOADS, Engine
from benchmarks.peers.goals import to_ratios
from benchmarks.peers.online import online
from benchmarks.peers.report import to_text
from benchmarks.peers.requests import write_requests
from benchmarks.peers.turns import (
    EngineFailed,
    Turn,
    append_turns,
    is_done,
    load_turns,
    offline,
    order,
)
from benchmarks.results_file import save


def main() -> None:
    """Run what is missing and print the tables."""
    options = _parse()
    directory = options.directory
    folder = options.run or directory / "run"
    _settle(folder, {"seed": options.seed, "threads": options.threads, "cut": options.num_requests})
    write_requests(folder / "requests", seed=options.seed, num_requests=options.num_requests)
    chosen = [ENGINES[name] for name in options.engines]
    absent = {one.name: what for one in chosen if (what := one.missing(directory)) is not None}
    for name, what in absent.items():
        print(f"{name} is skipped: there is no {what}", file=sys.stderr)
    present = [engine for engine in chosen if engine.name not in absent]
    path = folder / "turns.jsonl"
    for number in range(1, options.rounds + 1):
        for workload in options.workloads:
            able = [engine for engine in present if workload in engine.workloads]
            for engine in order(able, number):
                if not is_done(load_turns(path), number, engine.name, workload):
                    append_turns(path, _take(number, engine, workload, folder, options))
    turns = load_turns(path)
    if not turns:
        sys.exit("no engine was there")
    text = to_text(turns, absent)
    print(text)
    if options.save:
        _save(turns, text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=_whole_path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", type=_names(ENGINES), default=list(ENGINES))
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--num-requests", type=int, help="cut every workload to so many")
    parser.add_argument(
        "--rates", default="0.5,1,2,4,8", help="W5's requests a second (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=900.0, help="of a turn")
    parser.add_argument(
        "--run", type=_whole_path, help="where turns are kept (default: DIRECTORY/run)"
    )
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    return parser.parse_args()


def _whole_path(text: str) -> Path:
    """Return a path that other processes, which work elsewhere, can use."""
    return Path(text).expanduser().resolve()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return names

    return parse


def _settle(folder: Path, settings: Mapping[str, object]) -> None:
    """Keep what a run's turns have in common; they are not mixed with others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        sys.exit(f"{folder} has turns of other settings: remove it, or give another --run")
    path.write_text(json.dumps(settings), encoding="utf-8")


def _take(
    number: int, engine: Engine, workload: str, folder: Path, options: argparse.Namespace
) -> list[Turn]:
    """Return what came of an engine on a workload: of W5, a turn of each rate."""
    begin_s = time.monotonic()
    try:
        found, failure = _figures(engine, workload, folder, options), None
    except EngineFailed as error:
        found, failure = {workload: {}}, str(error)
    spent = f"{time.monotonic() - begin_s:.0f} s"
    said = failure or json.dumps(found)
    print(f"round {number} {workload} {engine.name}, {spent}: {said}", file=sys.stderr, flush=True)
    return [
        Turn(round=number, engine=engine.name, workload=name, figures=figures, failure=failure)
        for name, figures in found.items()
    ]


def _figures(
    engine: Engine, workload: str, folder: Path, options: argparse.Namespace
) -> Mapping[str, Mapping[str, float]]:
    directory, threads = options.directory, options.threads
    requests = folder / "requests" / f"{workload}.jsonl"
    if workload == ONLINE:
        rates = [float(rate) for rate in options.rates.split(",")]
        return online(engine, directory, requests, rates, threads=threads)
    timeout_s = options.timeout_s
    figures = offline(engine, directory, requests, threads=threads, timeout_s=timeout_s)
    return {workload: figures}


def _save(turns: Sequence[Turn], text: str) -> None:
    ratios = [
        {
            "what": found.goal.name,
            "engine": found.goal.ours,
            "peer": found.peer,
            "ratios": found.ratios,
            "goal": found.goal.wanted,
        }
        for found in to_ratios(turns)
    ]
    kept = [dataclasses.asdict(turn) for turn in turns]
    save("peers", {"model": "smollm2-135m", "ratios": ratios, "turns": kept}, text)


if __name__ == "__main__":
    main()
