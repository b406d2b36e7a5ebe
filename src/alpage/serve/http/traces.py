"""Traces: a span per request that generates, by the names that OpenTelemetry has for models.

Needs the extra `otel`. A span is made when its request is over, of what is known of it then, so
nothing waits for it; another thread sends it.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from alpage.errors import InvalidValue, Unsupported
from alpage.serve.http.ticket import Ticket
from alpage.serve.http.visits import Visit, work_of
from alpage.version import __version__

_PROTOCOL: Final = "http/protobuf"
_PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PATH: Final = "/v1/traces"
_OPERATIONS: Final = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}
_BROKEN: Final = 500
_ASKED: Final = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_WORK: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "is_streamed": "gen_ai.request.stream",
    "first_token_s": "gen_ai.response.time_to_first_chunk",
}


@final
class Traces:
    """Makes spans of visits.

    Args:
        provider: takes them.
        model: what the model is called.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._tracer = provider.get_tracer("alpage", __version__)
        self._model = model

    def ended(self, visit: Visit) -> None:
        """Make a span of a visit that is over, below the one that its request names."""
        operation = _OPERATIONS.get(visit.path)
        if operation is None or visit.method != "POST":
            return
        end_ns = time.time_ns()
        start_ns = end_ns - int((time.monotonic() - visit.begun_s) * 1e9)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=TraceContextTextMapPropagator().extract(visit.trace_headers),
            kind=SpanKind.SERVER,
            start_time=start_ns,
            attributes=self._attributes(visit, operation),
        )
        has_failed = visit.status is None or visit.status >= _BROKEN
        # An answer that had begun with success may have ended with an error.
        if has_failed or (visit.code is not None and visit.status == 200):
            span.set_status(StatusCode.ERROR, visit.code or "client left")
        span.end(end_ns)

    def _attributes(self, visit: Visit, operation: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "alpage",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "http.request.method": visit.method,
            "http.route": visit.path,
            "alpage.request_id": visit.request_id,
        }
        if visit.status is not None:
            found["http.response.status_code"] = visit.status
        if visit.code is not None:
            found["error.type"] = visit.code
        if visit.ticket is not None:
            found |= _asked(visit.ticket)
            work = work_of(visit.ticket, has_failed=visit.code is not None)
            found |= {_WORK[name]: value for name, value in work.items()}
        return found


@contextmanager
def exporting(endpoint: str | None) -> Iterator[TracerProvider]:
    """Send spans to a collector, the last ones at the end.

    Args:
        endpoint: address of the collector; None: as OpenTelemetry's variables say.

    Yields:
        What takes them.

    Raises:
        InvalidValue: the address is none.
        Unsupported: the variables want another protocol.
    """
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise InvalidValue(
            field="otlp_endpoint",
            value=endpoint,
            limit="must be an address that begins with http:// or https://",
            remedy="Give such as http://127.0.0.1:4318",
        )
    for variable in _PROTOCOL_VARIABLES:
        protocol = os.environ.get(variable, _PROTOCOL)
        if protocol != _PROTOCOL:
            raise Unsupported(
                field=variable,
                value=protocol,
                limit=f"is not spoken here: {_PROTOCOL} is",
                remedy=f"Set it to {_PROTOCOL}, with the collector's port for it, usually 4318",
            )
    url = None if endpoint is None else endpoint.rstrip("/").removesuffix(_PATH) + _PATH
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "alpage"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    try:
        yield provider
    finally:
        provider.shutdown()


def _asked(ticket: Ticket) -> dict[str, Any]:
    """Return what the first of the prompts asks for, as all do."""
    params = ticket.asks[0].params
    values = {name: getattr(params, name, None) for name in _ASKED}
    found = {f"gen_ai.request.{name}": v for name, v in values.items() if v is not None}
    n = params.n or 1
    return found | ({"gen_ai.request.choice.count": n} if n > 1 else {})
