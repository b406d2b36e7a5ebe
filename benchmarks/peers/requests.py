"""Requests: the workloads, every prompt written out, so that all engines get the same tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.workloads import PLAIN_IDS, all_workloads

Record: TypeAlias = dict[str, Any]

_NUM_BEAM_PROMPTS = 4
_BEAM_TOKENS = 64
# Of W1's requests that arrive one by one in W5.
NUM_ONLINE = 64


def write_requests(folder: Path, *, seed: int, num_requests: int | None) -> None:
    """Write a file of each workload.

    Args:
        folder: it is made if need be.
        seed: of lengths and prompts.
        num_requests: that each file has at most; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in all_requests(seed).items():
        lines = [json.dumps(record) + "\n" for record in records[:num_requests]]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def all_requests(seed: int) -> dict[str, list[Record]]:
    """Return every workload's requests by its name; W5 has lengths alone."""
    found = all_workloads(seed)
    draw = np.random.default_rng(seed)
    beam = {"prompt_tokens": 128, "output_tokens": _BEAM_TOKENS}
    plain: dict[str, Sequence[Mapping[str, object]]] = {
        name: found[name] for name in ("w1", "w2", "w3", "w4")
    }
    plain |= {
        f"beam{width}": [{**beam, "beam_width": width}] * _NUM_BEAM_PROMPTS for width in (4, 8)
    }
    written = {
        name: [_written(record, draw) for record in records] for name, records in plain.items()
    }
    return written | {"w5": [dict(record) for record in found["w1"][:NUM_ONLINE]]}


def _written(record: Mapping[str, Any], draw: np.random.Generator) -> Record:
    """Return a request with its prompt; it waits for no time of its own."""
    kept = {
        key: value for key, value in record.items() if key not in {"prompt_tokens", "arrival_s"}
    }
    if "prompt" not in record:
        kept["prompt"] = draw.integers(*PLAIN_IDS, record["prompt_tokens"]).tolist()
    return kept
