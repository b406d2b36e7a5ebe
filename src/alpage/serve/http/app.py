"""App: the routes, and the form of every error."""

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from alpage.errors import AlpageError
from alpage.serve.http.answers import Answer
from alpage.serve.http.bodies import Bodies
from alpage.serve.http.engine_client import State
from alpage.serve.http.events import EventStream, waiting
from alpage.serve.http.guard import Guard
from alpage.serve.http.live import add_live
from alpage.serve.http.metrics import CONTENT_TYPE
from alpage.serve.http.openapi import asked_by, named_by, said_by
from alpage.serve.http.page_files import add_page
from alpage.serve.http.refusals import (
    Refusal,
    draining,
    failed,
    lost,
    refusal_of,
    restarting,
)
from alpage.serve.http.replies import (
    ChatReply,
    CompletionReply,
    EmbeddingReply,
    ModelCard,
    ModelList,
    Text,
    Tokens,
    VersionReply,
)
from alpage.serve.http.response_replies import ResponseReply
from alpage.serve.http.response_schema import ResponseRequest
from alpage.serve.http.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from alpage.serve.http.service import Service
from alpage.serve.http.ticket import Ticket
from alpage.serve.http.visits import visit_of
from alpage.version import __version__

# What a step of many tokens may take; metrics do not wait for an engine that is stuck.
_PATIENCE_S = 1.0


def make_app(service: Service) -> FastAPI:
    """Return the ASGI application of a service, whose loop runs as long as it is asked."""
    # The pages that show the routes load scripts from elsewhere; the document itself is there.
    app = FastAPI(
        title="alpage",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        default_response_class=Response,
    )
    app.add_middleware(Guard, keys=service.settings.api_keys, ended=service.visits.ended)
    for kind, handler in (
        (Refusal, _refused),
        (AlpageError, _wrong),
        (HTTPException, _unrouted),
        (Exception, _broken),
    ):
        app.add_exception_handler(kind, handler)
    _add_states(app, service)
    _add_models(app, service)
    _add_generation(app, service)
    _add_tokens(app, service)
    add_live(app, service)
    add_page(app)
    return app


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/health", openapi_extra=said_by(errors=(503,)))
    async def health() -> Response:
        """Say whether the engine makes steps when it has work."""
        state = service.engine.state
        if state in ("lost", "stalled"):
            raise lost() if state == "lost" else _stalled(service.settings.stall_s)
        return Response(status_code=200)

    @app.get("/ready", openapi_extra=said_by(errors=(503,)))
    async def ready() -> Response:
        """Say whether new requests are taken."""
        state = service.engine.state
        if state != "running":
            raise _not_ready(state)
        return Response(status_code=200)

    @app.get("/version", openapi_extra=said_by(VersionReply))
    async def version() -> Response:
        """Say which version this is."""
        return _json(VersionReply(__version__))

    @app.get("/metrics", openapi_extra=said_by(media_type="text/plain"))
    async def metrics() -> Response:
        """Tell Prometheus how it goes."""
        report = await service.engine.report(_PATIENCE_S)
        text = service.metrics.text(report, service.engine.num_restarts)
        return Response(text, media_type=CONTENT_TYPE)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", openapi_extra=said_by(ModelList))
    async def models() -> Response:
        """List the names of the model."""
        return _json(ModelList(data=service.cards()))

    described = named_by("name") | said_by(ModelCard, errors=(404,))

    @app.get("/v1/models/{name:path}", openapi_extra=described)
    async def model(request: Request) -> Response:
        """Describe one of them."""
        return _json(service.card(request.path_params["name"]))


def _add_generation(app: FastAPI, service: Service) -> None:
    bodies = Bodies(service.settings)

    async def answered(request: Request, ticket: Ticket, answer: Answer) -> Response:
        visit_of(request.scope).ticket = ticket
        if ticket.is_streamed:
            return EventStream(ticket, answer, service.settings.keep_alive_s)
        async with waiting(ticket, request.receive):
            outputs = await ticket.outputs()
        if len(outputs) < len(ticket.asks):
            # The client has gone, and nobody reads this.
            return Response(status_code=499)
        return _json(answer.whole(outputs))

    described = asked_by(CompletionRequest, CompletionReply, has_engine=True, is_streamed=True)

    @app.post("/v1/completions", openapi_extra=described)
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        asked = await bodies.read(request, CompletionRequest)
        return await answered(request, *await service.complete(asked))

    described = asked_by(ChatRequest, ChatReply, has_engine=True, is_streamed=True)

    @app.post("/v1/chat/completions", openapi_extra=described)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        asked = await bodies.read(request, ChatRequest)
        return await answered(request, *await service.chat(asked))

    described = asked_by(ResponseRequest, ResponseReply, has_engine=True, is_streamed=True)

    @app.post("/v1/responses", openapi_extra=described)
    async def responses(request: Request) -> Response:
        """Answer a conversation, in the form of responses."""
        asked = await bodies.read(request, ResponseRequest)
        return await answered(request, *await service.respond(asked))

    described = asked_by(EmbeddingRequest, EmbeddingReply, has_engine=True)

    @app.post("/v1/embeddings", openapi_extra=described)
    async def embeddings(request: Request) -> Response:
        """Make numbers of texts."""
        asked = await bodies.read(request, EmbeddingRequest)
        return await answered(request, *await service.embed(asked))


def _add_tokens(app: FastAPI, service: Service) -> None:
    bodies = Bodies(service.settings)

    @app.post("/tokenize", openapi_extra=asked_by(TokenizeRequest, Tokens))
    async def tokenize(request: Request) -> Response:
        """Turn a text or a conversation into tokens."""
        return _json(await service.tokenize(await bodies.read(request, TokenizeRequest)))

    @app.post("/detokenize", openapi_extra=asked_by(DetokenizeRequest, Text))
    async def detokenize(request: Request) -> Response:
        """Turn tokens into text."""
        return _json(service.detokenize(await bodies.read(request, DetokenizeRequest)))


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _not_ready(state: State) -> Refusal:
    if state == "restarting":
        return restarting()
    return draining() if state == "draining" else lost()


def _stalled(stall_s: float) -> Refusal:
    message = f"There is work, and for {stall_s:g} s no step was made."
    return Refusal(503, message, kind="server_error", code="engine_stalled")


# -- errors ----------------------------------------------------------------------------------------


def _respond(request: Request, refusal: Refusal) -> Response:
    visit_of(request.scope).code = refusal.code
    return Response(refusal.body, refusal.status, refusal.headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal), "what it is registered for"
    return _respond(request, error)


async def _wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, AlpageError), "what it is registered for"
    return _respond(request, refusal_of(error))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "what it is registered for"
    place = f"{request.method} {request.url.path}"
    is_method = error.status_code == 405
    message = f"Not allowed: {place}." if is_method else f"Invalid URL ({place})."
    code = "method_not_allowed" if is_method else "unknown_url"
    refusal = Refusal(error.status_code, message, code=code, headers=error.headers)
    return _respond(request, refusal)


async def _broken(request: Request, _error: Exception) -> Response:
    # It is raised again behind this answer, and logged there.
    return _respond(request, failed())
