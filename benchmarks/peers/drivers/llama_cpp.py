"""llama.cpp: its server, spoken to over HTTP; its library has no batching of its own."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.peers.drivers.driver import Driver, Request, Task, main, post

_NUM_SLOTS = 32
_SLOT_TOKENS = 1_280
_START_S = 120.0


@final
class LlamaCpp(Driver):
    """llama.cpp."""

    def __init__(self, task: Task) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        model = Path(task.model)
        program = model.parents[1] / "llama.cpp/build/bin/llama-server"
        threads = str(task.threads)
        options = {
            "-m": task.model,
            "--port": str(port),
            "-t": threads,
            "-tb": threads,
            "-np": str(_NUM_SLOTS),
            "-c": str(_NUM_SLOTS * _SLOT_TOKENS),
        }
        words = [word for pair in options.items() for word in pair]
        self._server = subprocess.Popen(
            [program, *words, "-kvu", "--no-webui"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return sum(pool.map(self._answer, requests))

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        with post(f"{self._url}/completion", _body(request) | {"stream": True}) as response:
            for line in response:
                if line.startswith(b"data: "):
                    for _ in json.loads(line[6:])["tokens"]:
                        on_token()

    def close(self) -> None:
        """End the server."""
        self._server.terminate()
        self._server.wait()

    def _answer(self, request: Request) -> int:
        with post(f"{self._url}/completion", _body(request)) as response:
            found = json.load(response)
        answers = found if isinstance(found, list) else [found]
        return sum(len(answer["tokens"]) for answer in answers)

    def _wait(self) -> None:
        end_s = time.monotonic() + _START_S
        while True:
            assert self._server.poll() is None, "the server has ended"
            try:
                urlopen(f"{self._url}/health").close()
            except URLError:
                assert time.monotonic() < end_s, "the server does not answer"
                time.sleep(0.02)
            else:
                return


def _body(request: Request) -> Mapping[str, Any]:
    return {
        "prompt": request.prompt,
        "n_predict": request.output_tokens,
        "n_cmpl": request.n,
        "temperature": 1 if request.n > 1 else 0,
        "ignore_eos": True,
        "return_tokens": True,
        # Else sampling would also look at the likeliest 40 alone, and others would not.
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
    }


if __name__ == "__main__":
    main(LlamaCpp)
