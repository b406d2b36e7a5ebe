"""Online: an engine's server under requests that arrive one by one, at several rates."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.peers.engines import Engine
from benchmarks.peers.turns import EngineFailed, end_session, last_words

# Compiling takes vLLM minutes.
_START_S = 600.0
_END_S = 10.0


def online(
    engine: Engine, directory: Path, requests: Path, rates: Sequence[float], *, threads: int
) -> dict[str, Mapping[str, float]]:
    """Return an engine's figures by workload: "w5 0.5/s" of each rate, and "w5" of all.

    Args:
        engine: alpage or vLLM.
        directory: of the peers.
        requests: a file of lengths.
        rates: requests a second.
        threads: cores that the server may use; the client comes on top.

    Raises:
        EngineFailed: its server ended, did not begin or failed a request.
    """
    with _serving(engine, directory, threads) as url:
        _bench(url, "--num-requests", "8", "--rate", "inf", "--output-tokens", "16")
        wanted = ",".join(f"{rate:g}" for rate in rates)
        return to_figures(_bench(url, "--workload", str(requests), "--rate", wanted))


def to_figures(found: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Return the figures of `alpage bench serve --json` by the workload that they belong to.

    A server that kept up with every rate can do the highest of them at least.

    Raises:
        EngineFailed: a request was not answered.
    """
    figures: dict[str, Mapping[str, float]] = {}
    for run in found["runs"]:
        if run["failures"]:
            raise EngineFailed(f"failed requests at {run['rate']:g}/s: {run['failures']}")
        latencies = run["latencies"]
        figures[f"w5 {run['rate']:g}/s"] = {
            "normalised_p50_s": latencies["normalised_s"]["p50"]["value"],
            "normalised_p99_s": latencies["normalised_s"]["p99"]["value"],
            "ttft_p50_s": latencies["ttft_s"]["p50"]["value"],
        }
    highest = max(run["rate"] for run in found["runs"])
    return figures | {"w5": {"saturation_per_s": found["saturation_rate"] or highest}}


def _bench(url: str, *options: str) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "alpage", "bench", "serve", url, *options, "--json"]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:
        raise EngineFailed(f"bench serve: {error}") from error
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def _serving(engine: Engine, directory: Path, threads: int) -> Iterator[str]:
    """Have an engine's server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+b") as said:
        program = subprocess.Popen(
            server_command(engine, directory, port),
            env=engine.variables(directory) | {"OMP_NUM_THREADS": str(threads)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(program.pid, cores)
        try:
            if not _answers(url, program):
                said.seek(0)
                raise EngineFailed(last_words(said.read().decode(errors="replace")))
            yield url
        finally:
            program.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                program.wait(_END_S)
            end_session(program)


def server_command(engine: Engine, directory: Path, port: int) -> list[str]:
    """Return the words that start an engine's server."""
    python, model = str(engine.python(directory)), str(directory / engine.model)
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if engine.is_own:
        weights = [] if engine.is_16_bit else ["--quantization", engine.weights]
        memory = ["--kv-memory", "1GiB"]
        return [python, "-m", "alpage", "serve", model, *where, *memory, *weights]
    module = "vllm.entrypoints.openai.api_server"
    lengths = ["--max-model-len", "2048", "--max-num-seqs", "128"]
    return [python, "-m", module, "--model", model, *where, *lengths, "--dtype", engine.weights]


def _answers(url: str, program: "subprocess.Popen[bytes]") -> bool:
    """Wait until a server answers; return whether it does."""
    end_s = time.monotonic() + _START_S
    while program.poll() is None and time.monotonic() < end_s:
        try:
            urlopen(f"{url}/v1/models").close()
        except (URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return True
    return False
