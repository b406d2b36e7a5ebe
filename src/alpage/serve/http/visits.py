"""Visits: HTTP requests from their first byte to their last, for those who run the server."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, final

import msgspec
from starlette.types import Scope

from alpage.serve.http.ticket import Ticket

_KEY: Final = "alpage.visit"
_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
# The status of nginx for a client that did not wait.
_LEFT: Final = 499


@final
@dataclass(slots=True, kw_only=True)
class Visit:
    """One HTTP request, as far as it has come.

    Attributes:
        request_id: the name that its answer carries.
        method: of HTTP.
        path: of the route.
        begun_s: when it came, by `time.monotonic`.
        trace_headers: those of the request that name the trace it is of, as W3C has them.
        status: of the answer, once it has begun.
        code: of the error that it was told, if any, in its stream or as its answer.
        ticket: what it waits for, if the engine has to do with it.
    """

    request_id: str
    method: str
    path: str
    begun_s: float
    trace_headers: Mapping[str, str]
    status: int | None = None
    code: str | None = None
    ticket: Ticket | None = None


def visit_of(scope: Scope) -> Visit:
    """Return the visit that a request is."""
    visit = scope[_KEY]
    assert isinstance(visit, Visit)
    return visit


def begin_visit(scope: Scope, request_id: str) -> Visit:
    """Return the visit that a request is from now on."""
    visit = Visit(
        request_id=request_id,
        method=scope["method"],
        path=scope["path"],
        begun_s=time.monotonic(),
        trace_headers={
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _TRACE_HEADERS
        },
    )
    scope[_KEY] = visit
    return visit


@final
class Visits:
    """What is kept of visits that have ended: how many were refused, and a log, if there is one.

    Args:
        is_logged: whether each request that sends a body gets a line on stderr.
        watch: takes each visit once it is over.
        write: takes the line.
    """

    def __init__(
        self,
        *,
        is_logged: bool,
        watch: Callable[[Visit], None] | None = None,
        write: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        self.num_refused: Counter[tuple[str, ...]] = Counter()
        self._is_logged = is_logged
        self._watch = watch
        self._write = write

    def ended(self, visit: Visit) -> None:
        """Note that a visit is over."""
        if visit.code is not None:
            self.num_refused[str(visit.status), visit.code] += 1
        if self._watch is not None:
            self._watch(visit)
        if self._is_logged and visit.method == "POST":
            self._write(msgspec.json.encode(_record(visit)).decode() + "\n")


def _record(visit: Visit) -> dict[str, Any]:
    """Return a visit as a line of the log; what is not known is left out."""
    record: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": visit.request_id,
        "path": visit.path,
        "status": visit.status or _LEFT,
        "seconds": round(time.monotonic() - visit.begun_s, 6),
    }
    if visit.code is not None:
        record["error"] = visit.code
    if visit.ticket is not None:
        record |= work_of(visit.ticket, has_failed=visit.code is not None)
    return record


def work_of(ticket: Ticket, *, has_failed: bool) -> dict[str, Any]:
    """Return what the engine did for a visit."""
    outputs = ticket.finished
    choices = [choice for output in outputs for choice in output.outputs]
    reasons: list[str] = [choice.finish_reason for choice in choices]
    if len(outputs) < len(ticket.asks):
        reasons.append("error" if has_failed else "abort")
    firsts_s = [
        output.metrics.first_token_s - output.metrics.arrival_s
        for output in outputs
        if output.metrics.first_token_s is not None
    ]
    record: dict[str, Any] = {
        "prompt_tokens": sum(len(ask.prompt_tokens) for ask in ticket.asks),
        "cached_tokens": sum(output.metrics.cached_tokens for output in outputs),
        "output_tokens": sum(len(choice.token_ids) for choice in choices),
        "finish_reasons": reasons,
        "is_streamed": ticket.is_streamed,
    }
    if firsts_s:
        record["first_token_s"] = round(min(firsts_s), 6)
    return record
