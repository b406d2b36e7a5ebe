"""Child: `alpage serve` as a process of its own, for as long as a load needs it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from alpage.errors import InvalidValue

_SERVING = "Serving "
_END_S = 10.0


@contextmanager
def server_of(
    model: str,
    options: Sequence[str],
    notify: Callable[[str], None],
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, int]]:
    """Start a server at a port that is free, and end it.

    Args:
        model: a short name or a path.
        options: of `alpage serve`.
        notify: takes the other lines that it prints.
        environment: variables that it has besides those of this process.

    Yields:
        Its address, and the number of its process.

    Raises:
        InvalidValue: it ended before it served.
    """
    command = [sys.executable, "-m", "alpage", "serve", model, "--port", "0", *options]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as program:
        try:
            url = _url(program, model, notify)
            reader = threading.Thread(target=_pass_on, args=(program, notify), daemon=True)
            reader.start()
            yield url, program.pid
        finally:
            program.terminate()
            with suppress(subprocess.TimeoutExpired):
                program.wait(_END_S)
            program.kill()


def _url(program: "subprocess.Popen[str]", model: str, notify: Callable[[str], None]) -> str:
    """Return the address, which the server tells once it listens there."""
    assert program.stderr is not None
    said = "nothing"
    for line in program.stderr:
        if line.startswith(_SERVING):
            return line.rpartition(" at ")[2].split()[0]
        said = line.strip() or said
        notify(said)
    raise InvalidValue(
        field="target",
        value=model,
        limit=f"ended before it served; its last words: {said}",
        remedy="Give --serve-options as `alpage serve` knows them, or the address of a server",
    )


def _pass_on(program: "subprocess.Popen[str]", notify: Callable[[str], None]) -> None:
    assert program.stderr is not None
    with suppress(ValueError):  # it was closed
        for line in program.stderr:
            notify(line.rstrip())
