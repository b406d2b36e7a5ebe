"""Workloads: write the files that `alpage bench offline` replays.

    python -m benchmarks.workloads DIRECTORY [--seed 0]

w1          offline: 128 requests at once, lengths lognormal
w2          one stream: 128 tokens in, 128 out, each request long after the one before
w3          shared prefix: 64 requests with the same 512 tokens in front of 32 of their own
w4          parallel sampling: 16 prompts, 8 continuations each
sharegpt    256 requests at once with lengths like ShareGPT's (see benchmarks/lengths.py)
alpaca      256 requests at once with lengths like Alpaca's

Prompts are random token ids: w3 writes its own, the other files leave them to the replay.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.lengths import SHAREGPT_LIKE, LengthModel, Lognormal, alpaca_like

Record: TypeAlias = Mapping[str, object]

# Ids that every vocabulary of the Llama family has, and that are special in none.
PLAIN_IDS = (1_000, 32_000)
W1_LENGTHS = LengthModel(
    prompt=Lognormal(mean=160, sigma=0.9, low=8, high=768),
    output=Lognormal(mean=128, sigma=0.8, low=8, high=512),
)
# Time enough for a slow machine to finish a request before the next one arrives.
_W2_GAP_S = 10.0


def all_workloads(seed: int) -> dict[str, list[Record]]:
    """Return every workload by its name; the same seed makes the same files."""
    rng = np.random.default_rng(seed)
    return {
        "w1": _of_lengths(W1_LENGTHS, 128, rng),
        "w2": [
            {"prompt_tokens": 128, "output_tokens": 128, "arrival_s": _W2_GAP_S * number}
            for number in range(5)
        ],
        "w3": _shared_prefix(rng),
        "w4": [{"prompt_tokens": 128, "output_tokens": 64, "n": 8}] * 16,
        "sharegpt": _of_lengths(SHAREGPT_LIKE, 256, rng),
        "alpaca": _of_lengths(alpaca_like(), 256, rng),
    }


def _of_lengths(model: LengthModel, num_requests: int, rng: np.random.Generator) -> list[Record]:
    return [
        {"prompt_tokens": num_prompt, "output_tokens": num_output}
        for num_prompt, num_output in model.draw(num_requests, rng)
    ]


def _shared_prefix(rng: np.random.Generator) -> list[Record]:
    prefix = rng.integers(*PLAIN_IDS, 512).tolist()
    return [
        {"prompt": prefix + rng.integers(*PLAIN_IDS, 32).tolist(), "output_tokens": 32}
        for _ in range(64)
    ]


def _write(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name, records in all_workloads(options.seed).items():
        _write(options.directory / f"{name}.jsonl", records)


if __name__ == "__main__":
    main()
