"""Tiny servers: a random model behind HTTP, in this process or in one of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from alpage import LLM
from alpage.serve.http import EngineThread, Service, Settings, make_app

NAME = "tiny"
DEADLINE_S = 60.0


@contextmanager
def service_of(llm: LLM, **settings: Any) -> Iterator[Service]:
    """A service whose loop runs."""
    service = Service(EngineThread(llm.engine), llm.tokenizer, Settings(names=(NAME,), **settings))
    service.engine.start()
    try:
        yield service
    finally:
        service.engine.stop()


class Client:
    """Sends one request at a time to an application in this process."""

    def __init__(self, service: Service) -> None:
        self.app = make_app(service)

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
                return await client.request(method, path, timeout=DEADLINE_S, **arguments)

        return asyncio.run(send())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.send("GET", path, **arguments)

    def post(self, path: str, body: Any = None, **arguments: Any) -> httpx.Response:
        if body is not None:
            arguments["json"] = body
        return self.send("POST", path, **arguments)

    def complete(self, prompt: Any, **fields: Any) -> Any:
        response = self.post("/v1/completions", {"prompt": prompt} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, messages: Any, **fields: Any) -> Any:
        response = self.post("/v1/chat/completions", {"messages": messages} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return what `/metrics` says by name and labels, without the label that all have."""
        response = self.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k not in {"model", "engine"}}
                assert labels.pop("model_name", NAME) == NAME
                key = (sample.name, *sorted(labels.values()))
                assert key not in found
                found[key] = sample.value
        return found

    def stream(self, path: str, body: Any) -> list[Any]:
        """Return the parts of a streamed answer, which ends as it should."""
        response = self.post(path, body | {"stream": True})
        assert response.status_code == 200, response.text
        return events_of(response.text)


def scope_of(path: str) -> dict[str, Any]:
    """Return how a server announces a POST of JSON to its application."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


def events_of(text: str) -> list[Any]:
    """Return the events of a stream, which ends as it should."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), text
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Process:
    """`alpage serve` in a process of its own, at a port that was free."""

    def __init__(self, model: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "alpage", "serve", str(model), "--port", "0"]
        options = ["--served-model-name", NAME, "--dtype", "float32", "--device", "cpu"]
        self.program = subprocess.Popen(
            [*command, *options, "--kv-memory", "8MiB", *arguments],
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.program.stderr is not None
        self.said: list[str] = []
        for line in self.program.stderr:
            self.said.append(line.decode())
            if line.startswith(b"Serving "):
                self.url = line.decode().split(" at ")[1].split(" ")[0]
                break
        else:
            raise AssertionError("".join(self.said))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the status that the server ends with."""
        self.program.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.program.wait(DEADLINE_S)
        assert self.program.stderr is not None
        self.said.append(self.program.stderr.read().decode())
        self.program.stderr.close()
        return status


@contextmanager
def process_of(model: Path, *arguments: str) -> Iterator[Process]:
    """A server that is gone afterwards."""
    process = Process(model, *arguments)
    try:
        yield process
    finally:
        if process.program.poll() is None:
            process.end(signal.SIGKILL)
