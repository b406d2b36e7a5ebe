"""Attention: a peer's own kernel in its own environment, asked for one measurement at a time."""

import json
import os
import subprocess
from pathlib import Path
from typing import Self, final

from benchmarks.peers.engines import ENGINES

_ROOT = Path(__file__).parents[2]


@final
class VllmAttention:
    """A process that times vLLM's attention; use it in `with`.

    Args:
        directory: of the peers, as benchmarks.peers takes it.
        threads: that it may use.
    """

    def __init__(self, directory: Path, *, threads: int) -> None:
        engine = ENGINES["vllm"]
        self._process = subprocess.Popen(
            [engine.python(directory), "-m", "benchmarks.peers.drivers.vllm_attention"],
            cwd=_ROOT,
            env=engine.variables(directory) | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    @staticmethod
    def is_installed(directory: Path) -> bool:
        """Whether there is an environment of vLLM's."""
        return os.access(ENGINES["vllm"].python(directory), os.X_OK)

    def call_s(self, *, batch: int, context: int, num_pools: int) -> float:
        """Return the seconds of a call, the mean of one with each of the pools in turn."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"batch": batch, "context": context, "num_pools": num_pools}
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"vLLM's attention ended with status {self._process.wait()}")
        return float(json.loads(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
