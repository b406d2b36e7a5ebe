"""Serve: `alpage serve`, a model for OpenAI's clients."""

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alpage.cli.loading import load_llm, start_engine
from alpage.cli.options import (
    DEFAULT_MODEL,
    DeterministicOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    KvDtypeOption,
    KvMemoryOption,
    LayoutOption,
    ModelArgument,
    QuantizationOption,
    ReplicasOption,
    SeedOption,
    StagesOption,
    TargetItlOption,
)
from alpage.cli.terminal import print_note
from alpage.errors import AlpageError, InvalidValue, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alpage.models import Tokenizer
    from alpage.serve.http.engine_link import EngineLink
    from alpage.serve.http.visits import Visit

_API_KEY_VARIABLE = "ALPAGE_API_KEY"
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_ENGINES = ("thread", "process")


def serve(  # noqa: PLR0913 - options of a command
    model: ModelArgument = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="What requests call the model; may be given several times.", show_default="MODEL"
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that requests have to bring; may be given several times.",
            show_default=f"${_API_KEY_VARIABLE}, or none",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where the model runs: in a thread of the server, or in a process of its own "
            "that is started again when it dies."
        ),
    ] = "thread",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    kv_dtype: KvDtypeOption = None,
    deterministic: DeterministicOption = False,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    replicas: ReplicasOption = 1,
    stages: StagesOption = 1,
    layout: LayoutOption = "auto",
    kv_memory: KvMemoryOption = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together.", show_default="the model's"),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at a time.")] = 128,
    target_itl: TargetItlOption = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that answers have when the server is told to end.")
    ] = 30.0,
    has_vllm_metrics: Annotated[
        bool, typer.Option("--vllm-metrics", help="Have metrics also by the names of vLLM's.")
    ] = False,
    logs_requests: Annotated[
        bool, typer.Option("--log-requests", help="Print a JSON line per request on stderr.")
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of an OpenTelemetry collector that gets a span per request; needs "
            "alpage[otel].",
            show_default=f"${_OTLP_VARIABLES[1]}, or none",
        ),
    ] = None,
    seed: SeedOption = None,
) -> None:
    """Serve a model over HTTP, for clients of OpenAI's API. Ctrl-C or SIGTERM ends it."""
    from alpage.serve.http import Service, Settings, bound, listen

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    variable = os.environ.get(_API_KEY_VARIABLE)
    settings = Settings(
        names=tuple(served_model_name or [model]),
        api_keys=tuple(api_key or ([variable] if variable else [])),
        drain_s=drain_s,
        has_vllm_metrics=has_vllm_metrics,
        logs_requests=logs_requests,
    )
    # An address that is taken is known before the model is loaded.
    with bound(host, port) as at, _watched(otlp_endpoint, settings.names[0]) as watch:
        link, tokenizer = _linked(
            engine,
            model,
            dtype=dtype,
            quantization=quantization,
            kv_dtype=kv_dtype,
            deterministic=deterministic,
            device=device,
            devices=devices,
            replicas=replicas,
            stages=stages,
            layout=layout,
            kv_memory=kv_memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            target_itl_s=target_itl,
            seed=seed,
        )
        listen(Service(link, tokenizer, settings, watch=watch), at, print_note)


@contextmanager
def _watched(endpoint: str | None, model: str) -> "Iterator[Callable[[Visit], None] | None]":
    """Have what makes spans of requests, if they are wanted."""
    if endpoint is None and not any(map(os.environ.get, _OTLP_VARIABLES)):
        yield None
        return
    try:
        from alpage.serve.http.traces import Traces, exporting
    except ImportError as error:
        raise Unsupported(
            field="otlp_endpoint",
            value=endpoint or next(filter(None, map(os.environ.get, _OTLP_VARIABLES))),
            limit=f"needs OpenTelemetry, and there is no {error.name}",
            remedy="Install alpage[otel], or leave out --otlp-endpoint and unset "
            + " and ".join(_OTLP_VARIABLES),
        ) from None
    with exporting(endpoint) as provider:
        yield Traces(provider, model).ended


def _linked(kind: str, model: str, **options: Any) -> "tuple[EngineLink, Tokenizer | None]":
    """Return the way to an engine in a thread or a process, and the model's tokenizer here."""
    from alpage.serve.http import EngineThread

    if kind not in _ENGINES:
        raise InvalidValue(
            field="engine",
            value=kind,
            limit="must be " + " or ".join(_ENGINES),
            remedy="Choose one of these",
        )
    if kind == "process":
        process, checkpoint = start_engine(model, **options)
        return process, _or_none(checkpoint.tokenizer)
    llm = load_llm(model, **options)
    return EngineThread(llm.engine), _or_none(lambda: llm.tokenizer)


def _or_none(tokenizer: "Callable[[], Tokenizer]") -> "Tokenizer | None":
    try:
        return tokenizer()
    except AlpageError as error:
        print_note(f"Requests must bring token ids: {error}")
        return None
