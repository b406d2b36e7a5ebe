"""Bench serve: `alpage bench serve`, how a server does under a load that waits for nobody."""

import asyncio
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alpage.cli.options import DEFAULT_MODEL
from alpage.cli.page import write_page
from alpage.cli.terminal import counting, print_note, working
from alpage.errors import InvalidValue
from alpage.models import resolve
from alpage.workload_file import RequestSpec, load_workload

if TYPE_CHECKING:
    from alpage.cli.load_table import Run
    from alpage.load import Load, Slo
    from alpage.load.target import Endpoint

_API_KEY_VARIABLE = "ALPAGE_API_KEY"
_VOCAB_SIZE = 32_000
_MS = 1e-3
# Of a server that was started for the purpose: every token is a part of its stream, even one that
# is no text yet.
_OWN_EXTRA = {"return_token_ids": True}


def serve(  # noqa: PLR0913 - options of a command
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="http://... of a server with OpenAI's interface, or a model to start one for.",
        ),
    ] = DEFAULT_MODEL,
    endpoint: Annotated[
        str,
        typer.Option(
            help="What requests are sent to: completions, or chat, which says prompts as a user "
            "and makes random ones of words."
        ),
    ] = "completions",
    workload: Annotated[
        Path | None,
        typer.Option(
            help="Requests, one JSON object a line, or a trace of Azure's as .csv.",
            show_default="random prompts",
        ),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option(help="Requests of each rate.", show_default="64, or all of the workload"),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Of each, without a workload.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Of each, without a workload.")] = 64,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Requests a second, or inf: all at once. Several, as in 0.5,1,2, are run in turn.",
            show_default="as the workload says, or 1",
        ),
    ] = None,
    burstiness: Annotated[
        float, typer.Option(help="Shape of the gamma distributed gaps: 1 is Poisson, less bursts.")
    ] = 1.0,
    max_concurrency: Annotated[
        int | None,
        typer.Option(help="Requests under way at a time; waiting counts.", show_default="no limit"),
    ] = None,
    slo_ttft: Annotated[
        float | None, typer.Option(help="Seconds to the first token that are good enough.")
    ] = None,
    slo_itl: Annotated[
        float | None,
        typer.Option(help="Seconds between tokens, over a request, that are good enough."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What the server calls its model.", show_default="the first it lists"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="That the server asks for.", show_default=f"${_API_KEY_VARIABLE}"),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            help="Random prompts have ids below it.",
            show_default=f"the model's; of an address {_VOCAB_SIZE:,}",
        ),
    ] = None,
    is_exact: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Ask for outputs of exactly that length; not all servers know how.",
        ),
    ] = True,
    extra_body: Annotated[
        str, typer.Option(help="Fields for every request, as a JSON object; null leaves one out.")
    ] = "{}",
    serve_options: Annotated[
        str, typer.Option(help="For `alpage serve`, if TARGET is a model.")
    ] = "",
    timeout_s: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and random prompts.")] = 0,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with plots to this file.")
    ] = None,
) -> None:
    """Send a server requests, each at its time, and measure what it takes to answer them."""
    from alpage.load import Load, Slo, Target, arrival_times

    specs = _specs(workload, num_requests, prompt_tokens, output_tokens)
    rates = _rates(rate, has_times=workload is not None)
    extra = _extra(extra_body)
    is_own = not target.startswith(("http://", "https://"))
    if is_own:
        resolve(target)  # What is not there, is refused before anything is loaded.
        extra = _OWN_EXTRA | extra
    if is_exact:
        extra = {"ignore_eos": True} | extra
    if max_concurrency is not None:
        _positive("max_concurrency", max_concurrency)
    slo = None if slo_ttft is None and slo_itl is None else Slo(ttft_s=slo_ttft, itl_s=slo_itl)
    loads = [
        Load(
            specs=specs,
            arrivals_s=[spec.arrival_s for spec in specs]
            if each is None
            else arrival_times(len(specs), each, burstiness=burstiness, seed=seed),
            vocab_size=vocab_size or _vocab_size(target, is_own=is_own),
            # Else a server that keeps prefixes would know the prompts of the rate before.
            seed=seed + number,
            extra=extra,
            endpoint=_endpoint(endpoint),
            max_concurrency=max_concurrency,
        )
        for number, each in enumerate(rates)
    ]
    with _served(target, serve_options, is_own=is_own) as url:

        def connect() -> Target:
            key = api_key or os.environ.get(_API_KEY_VARIABLE)
            return Target(url, model=model, api_key=key, timeout_s=timeout_s)

        runs = [_run(connect(), load, each, slo) for load, each in zip(loads, rates, strict=True)]
    _show(target, runs, slo, html, is_json=is_json)


def _show(
    target: str, runs: "Sequence[Run]", slo: "Slo | None", html: Path | None, *, is_json: bool
) -> None:
    from alpage.cli.load_table import to_json, to_table

    if html is not None:
        from alpage.cli.load_report import to_html

        write_page(html, to_html(target, runs, slo))
        print_note(f"drawn in {html}")
    if is_json:
        print(json.dumps(to_json(target, runs)))
    else:
        print(to_table(runs))


def _run(target: Any, load: "Load", rate: float | None, slo: "Slo | None") -> "Run":
    from alpage.cli.load_table import Run
    from alpage.load import generate, to_figures

    doing = "requests" if rate is None else f"{rate:g} requests/s"

    async def send() -> Any:
        async with target:
            return await generate(target, load, notify=advance)

    with counting(doing, len(load.specs)) as advance:
        outcomes = asyncio.run(send())
    return Run(figures=to_figures(outcomes, rate=rate, slo=slo), outcomes=outcomes)


@contextmanager
def _served(target: str, options: str, *, is_own: bool) -> Iterator[str]:
    """Have a server at an address, ours if there is none yet."""
    if not is_own:
        if options:
            raise InvalidValue(
                field="serve_options",
                value=options,
                limit="are for a server that is started here, and this one is there already",
                remedy="Give a model in place of its address, or leave them out",
            )
        yield target
        return
    from alpage.load import server_of

    with server_of(target, shlex.split(options), print_note) as (url, _):
        yield url


# -- what is asked for -----------------------------------------------------------------------------


def _specs(
    workload: Path | None, num_requests: int | None, num_prompt: int, num_output: int
) -> list[RequestSpec]:
    if num_requests is not None:
        _positive("num_requests", num_requests)
    if workload is not None:
        return load_workload(workload)[:num_requests]
    _positive("prompt_tokens", num_prompt)
    _positive("output_tokens", num_output)
    return [RequestSpec(prompt_tokens=num_prompt, output_tokens=num_output)] * (num_requests or 64)


def _endpoint(text: str) -> "Endpoint":
    # The routes themselves are what other benchmarks want here.
    match text.removeprefix("/").removeprefix("v1/"):
        case "completions":
            return "completions"
        case "chat" | "chat/completions":
            return "chat"
    raise InvalidValue(
        field="endpoint",
        value=text,
        limit="must be completions or chat",
        remedy="Choose one of these",
    )


def _rates(text: str | None, *, has_times: bool) -> list[float | None]:
    """Return the rates to be run; None is the workload's own times."""
    if text is None:
        return [None] if has_times else [1.0]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidValue(
            field="rate",
            value=text,
            limit="must be numbers with commas between them, or inf",
            remedy="Give such as 2 or 0.5,1,2,4",
        ) from None


def _extra(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidValue(
            field="extra_body",
            value=text,
            limit="is no JSON object",
            remedy="Give such as '{\"temperature\": 1}'",
        )
    return found


def _vocab_size(target: str, *, is_own: bool) -> int:
    if not is_own:
        return _VOCAB_SIZE
    from alpage.cli.model_shape import model_shape

    with working(f"looking at {target}"):
        return model_shape(target).vocab_size


def _positive(field: str, value: int) -> None:
    if value < 1:
        raise InvalidValue(
            field=field, value=value, limit="must be at least 1", remedy="Give a larger number"
        )
