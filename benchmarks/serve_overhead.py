"""Serve overhead: what HTTP costs: tokens/s of a server beside those of the engine alone.

    python -m benchmarks.serve_overhead [MODEL] [--streams 64] [--rounds 3]

Requests of the same lengths, all at once, go to `alpage bench offline` and, as streams, to `alpage
serve` by `alpage bench serve`, with the engine in a thread of the server and in a process, in turn,
each in processes of its own. The client that reads the streams runs on the same machine, and its
time is part of the cost.

What else the machine does can only slow a round, and slows the ways by chance: so the best round of
each is compared. Where that lies more than 10 % above the median the machine was not quiet, and the
comparison says nothing: then the status is 2. Else it is 0 if the server does what is wanted as it
is by default, with the engine in a thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import save
from benchmarks.workloads import W1_LENGTHS

ENGINES = ("thread", "process")
# Of what the engine does alone, the server is to do this share.
_WANTED = 0.9
# By how much the best round of either may lie above the median.
_MAX_SPREAD = 0.1


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "w.jsonl"
        write_workload(workload, options.streams)
        found = compare(options.model, workload, options.rounds)
    by_way = list(zip(*found, strict=True))
    alone, *others = map(max, by_way)
    shares = dict(zip(ENGINES, (best / alone for best in others), strict=True))
    is_quiet = all(max(way) <= (1 + _MAX_SPREAD) * statistics.median(way) for way in by_way)
    lines = [
        f"| {number} | {' | '.join(f'{pace:,.1f}' for pace in paces)} |"
        for number, paces in enumerate(found, start=1)
    ]
    table = "\n".join(
        [
            f"{options.model}, {options.streams} requests at once of W1's lengths; tokens/s:",
            "",
            "| round | offline | server, engine in a thread | in a process |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
            "Of what the engine does alone, by the best rounds: "
            + ", ".join(f"{share:.1%} in a {engine}" for engine, share in shares.items())
            + f"; wanted: {_WANTED:.0%}.",
            *([] if is_quiet else ["The machine was not quiet: this says nothing."]),
            "",
        ]
    )
    print(table)
    if not is_quiet:
        sys.exit(2)
    if options.save:
        save("serve_overhead", {"shares": shares, "rounds": found}, table)
    sys.exit(0 if shares["thread"] >= _WANTED else 1)


def write_workload(path: Path, num_requests: int) -> None:
    """Write requests of W1's lengths."""
    lengths = W1_LENGTHS.draw(num_requests, np.random.default_rng(0))
    records = [{"prompt_tokens": one, "output_tokens": other} for one, other in lengths]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def compare(model: str, workload: Path, num_rounds: int) -> list[list[float]]:
    """Return output tokens/s of the engine alone and of each server, round by round."""
    ways = [offline, *(partial(served, engine) for engine in ENGINES)]
    found = []
    for number in range(num_rounds):
        # Who comes first changes, so that none always finds the machine warm.
        first = number % len(ways)
        order = [*range(first, len(ways)), *range(first)]
        figures = {way: ways[way](model, workload) for way in order}
        for tokens in ("prompt_tokens", "output_tokens"):
            assert len({each[tokens] for each in figures.values()}) == 1, f"{tokens}: other work"
        found.append([float(figures[way]["output_tokens_per_s"]) for way in range(len(ways))])
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    return found


def offline(model: str, workload: Path) -> Mapping[str, Any]:
    """Return the figures of the engine alone."""
    return _alpage("bench", "offline", model, "--workload", str(workload), "--json")


def served(engine: str, model: str, workload: Path) -> Mapping[str, Any]:
    """Return the figures of a server with its engine in a thread or a process."""
    found = _alpage(
        *("bench", "serve", model, "--workload", str(workload), "--rate", "inf", "--json"),
        *("--serve-options", f"--engine {engine}"),
    )
    figures: Mapping[str, Any] = found["runs"][0]
    assert not figures["failures"], figures["failures"]
    return figures


def _alpage(*arguments: str) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "alpage", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
