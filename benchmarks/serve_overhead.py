"""Serve overhead: what HTTP costs: tokens/s of a server beside those of the engine alone.

    python -m benchmarks.serve_overhead [MODEL] [--streams 64] [--rounds 3]

Requests of the same lengths, all at once, go to `alpage bench offline` and, as streams, to `alpage
serve` by `alpage bench serve`, in turn, each in processes of its own. The client that reads the
streams runs on the same machine, and its time is part of the cost.

What else the machine does can only slow a round, and slows the two ways by chance: so the best
round of each is compared. Where that lies more than 10 % above the median the machine was not
quiet, and the comparison says nothing: then the status is 2.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import save
from benchmarks.workloads import W1_LENGTHS

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
    share = max(by_way[1]) / max(by_way[0])
    is_quiet = all(max(way) <= (1 + _MAX_SPREAD) * statistics.median(way) for way in by_way)
    lines = [
        f"| {number} | {alone:,.1f} | {server:,.1f} | {server / alone:.1%} |"
        for number, (alone, server) in enumerate(found, start=1)
    ]
    table = "\n".join(
        [
            f"{options.model}, {options.streams} requests at once of W1's lengths; tokens/s:",
            "",
            "| round | offline | server | share |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
            f"Share of the best rounds {share:.1%}; wanted: {_WANTED:.0%}.",
            *([] if is_quiet else ["The machine was not quiet: this says nothing."]),
            "",
        ]
    )
    print(table)
    if not is_quiet:
        sys.exit(2)
    if options.save:
        save("serve_overhead", {"share": share, "rounds": found}, table)
    sys.exit(0 if share >= _WANTED else 1)


def write_workload(path: Path, num_requests: int) -> None:
    """Write requests of W1's lengths."""
    lengths = W1_LENGTHS.draw(num_requests, np.random.default_rng(0))
    records = [{"prompt_tokens": one, "output_tokens": other} for one, other in lengths]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def compare(model: str, workload: Path, num_rounds: int) -> list[tuple[float, float]]:
    """Return output tokens/s of the engine alone and of the server, round by round."""
    ways: tuple[Callable[[str, Path], Mapping[str, Any]], ...] = (offline, served)
    found = []
    for number in range(num_rounds):
        # Who comes first changes, so that neither always finds the machine warm.
        order = ways if number % 2 == 0 else ways[::-1]
        by_way = {way: way(model, workload) for way in order}
        alone, behind_http = by_way[offline], by_way[served]
        for tokens in ("prompt_tokens", "output_tokens"):
            assert alone[tokens] == behind_http[tokens], f"{tokens}: not the same work"
        pace = "output_tokens_per_s"
        found.append((float(alone[pace]), float(behind_http[pace])))
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    return found


def offline(model: str, workload: Path) -> Mapping[str, Any]:
    """Return the figures of the engine alone."""
    return _alpage("bench", "offline", model, "--workload", str(workload), "--json")


def served(model: str, workload: Path) -> Mapping[str, Any]:
    """Return the figures of a server."""
    found = _alpage(
        *("bench", "serve", model, "--workload", str(workload), "--rate", "inf", "--json")
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
