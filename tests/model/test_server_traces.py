"""Traces: a span per request, by OpenTelemetry's names, to an exporter and over the wire."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from alpage import LLM
from alpage.errors import InvalidValue, Unsupported
from alpage.serve.http import EngineThread, Service, Settings
from tiny_llama import make_tiny_llama
from tiny_server import NAME, Client, process_of

pytest.importorskip("opentelemetry.sdk.trace")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from alpage.serve.http.traces import Traces, exporting

IDS = [5, 6, 7, 8, 9]
EXACT = {"ignore_eos": True, "temperature": 0}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def llm(model):
    return LLM(model, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=8)


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def client(llm, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    watch = Traces(provider, NAME).ended
    service = Service(EngineThread(llm.engine), llm.tokenizer, Settings(names=(NAME,)), watch=watch)
    service.engine.start()
    yield Client(service)
    service.engine.stop()
    provider.shutdown()


def test_span_tells_what_was_asked_and_what_it_took(client, spans):
    client.complete(IDS, max_tokens=4, n=1, **EXACT)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == (f"text_completion {NAME}", SpanKind.SERVER)
    assert (span.parent, span.status.status_code) == (None, StatusCode.UNSET)
    found = dict(span.attributes)
    seconds = (span.end_time - span.start_time) / 1e9
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < seconds < 60
    assert len(found.pop("alpage.request_id")) == 16
    assert found == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "alpage",
        "gen_ai.request.model": NAME,
        "gen_ai.response.model": NAME,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.stream": False,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
    }


def test_span_is_of_the_trace_that_its_request_names(client, spans):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert client.post("/v1/chat/completions", body, headers=headers).status_code == 200
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.request.stream"] is True


def test_refusals_and_failures_are_spans_too(llm, client, spans, monkeypatch):
    assert client.post("/v1/completions", {"prompt": IDS, "unheard": 1}).status_code == 400

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "start", fail)
        assert client.post("/v1/embeddings", {"input": IDS}).status_code == 500
        client.post("/v1/completions", {"prompt": IDS, "stream": True})
    refused, failed, cut = spans.get_finished_spans()
    assert refused.attributes["error.type"] == "unknown_parameter"
    assert refused.attributes["http.response.status_code"] == 400
    assert refused.status.status_code == StatusCode.UNSET
    for span in (failed, cut):
        assert span.attributes["error.type"] == "internal_error"
        assert span.status.status_code == StatusCode.ERROR


def test_what_generates_nothing_is_no_span(client, spans):
    client.get("/metrics")
    client.post("/tokenize", {"prompt": "text"})
    assert spans.get_finished_spans() == ()


class Collector(HTTPServer):
    """Takes what is sent to it."""

    def __init__(self):
        self.taken = []
        super().__init__(("127.0.0.1", 0), _Take)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Take(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((self.path, data))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("is_variable", [False, True])
def test_spans_reach_a_collector_before_the_server_ends(model, is_variable, monkeypatch):
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        options = () if is_variable else ("--otlp-endpoint", collector.url)
        if is_variable:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with process_of(model, *options) as server:
            httpx.post(f"{server.url}/v1/completions", json={"prompt": IDS, "max_tokens": 3})
            assert server.end() == 0
        collector.shutdown()
        thread.join()
    ((path, data),) = collector.taken
    assert path == "/v1/traces"
    for text in (b"gen_ai.usage.output_tokens", b"service.name", b"text_completion tiny"):
        assert text in data


def test_wrong_addresses_and_protocols_are_refused(monkeypatch):
    with pytest.raises(InvalidValue, match="http://"), exporting("localhost:4317"):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(Unsupported, match="http/protobuf"), exporting(None):
        pass
