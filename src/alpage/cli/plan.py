"""Plan: `alpage plan`, how a model would run on a cluster, without running it."""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, cast

import typer

from alpage.cli.model_shape import model_shape
from alpage.cli.page import write_page
from alpage.cli.plan_table import to_table
from alpage.cli.planned import planned, to_json
from alpage.cli.terminal import print_note, working
from alpage.cost import Precision
from alpage.errors import InvalidValue
from alpage.hardware import Device, resolve_cluster
from alpage.planners import Objective, Phase, plan_inference

plan_app = typer.Typer(no_args_is_help=True)

_FLOATS = ("bfloat16", "float16", "float32")


@plan_app.callback()
def plan() -> None:
    """Plan how a model runs on a cluster, without either at hand."""


@plan_app.command()
def inference(  # noqa: PLR0913 - options of a command
    model: Annotated[
        str,
        typer.Option(
            help="A known name such as palm-540b, a config.json, a model directory, a .gguf file "
            "or a short name."
        ),
    ],
    cluster: Annotated[
        str,
        typer.Option(help="A name with a size, such as tpu-v4-64, a TOML file, or local."),
    ],
    phase: Annotated[
        str | None,
        typer.Option(
            help="prefill or decode.", show_default="both on one mesh, and the switch between them"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences that run together.")] = 64,
    prefill_batch: Annotated[
        int | None,
        typer.Option(
            help="Prompts that are prefilled together, where both phases are planned.",
            show_default="1",
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 2048,
    new_tokens: Annotated[
        int, typer.Option(help="Tokens decoded for each prompt, where both phases are planned.")
    ] = 64,
    weights: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float16, float32, int8, or auto to price int8 too.",
            show_default="as the cluster computes",
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="Dtype of keys and values, as for --weights.",
            show_default="as the cluster computes",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="latency, or cost: the least device-seconds a token for this batch or a smaller."
        ),
    ] = "latency",
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with drawings to this file.")
    ] = None,
) -> None:
    """Choose mesh, layout and sharding of attention for a forward step, and say why."""
    machine = resolve_cluster(cluster)
    if phase is not None and prefill_batch is not None:
        raise InvalidValue(
            field="prefill_batch",
            value=prefill_batch,
            limit="is for plans of both phases",
            remedy="Use --batch, or leave out --phase",
        )
    num_prompts = 1 if prefill_batch is None else prefill_batch
    precisions = _precisions(machine.device, weights, kv)
    chosen = plan_inference(
        model_shape(model),
        machine,
        phase=cast("Phase | None", phase),  # It checks these words itself.
        batch=batch,
        prefill_batch=batch if phase == "prefill" else num_prompts,
        context=context,
        new_tokens=new_tokens,
        precisions=precisions,
        objective=cast("Objective", objective),
    )
    result = planned(model, machine, chosen, new_tokens)
    if html is not None:
        with working("drawing"):
            from alpage.cli.plan_report import to_html

            write_page(html, to_html(result, precisions))
        print_note(f"drawn in {html}")
    print(json.dumps(to_json(result)) if is_json else to_table(result))


def _precisions(device: Device, weights: str | None, kv: str | None) -> list[Precision]:
    """Return the dtypes to choose among: products in the fastest that is usual."""
    known = [dtype for dtype in _FLOATS if dtype in device.flops_per_s] or [_FLOATS[0]]
    compute = max(known, key=lambda dtype: device.flops_per_s.get(dtype, 0))
    return [
        Precision(weights=one, compute=compute, kv=other)
        for one, other in product(_dtypes("weights", weights, compute), _dtypes("kv", kv, compute))
    ]


def _dtypes(name: str, asked: str | None, compute: str) -> tuple[str, ...]:
    if asked is None:
        return (compute,)
    if asked == "auto":
        return (compute, "int8")
    if asked not in (*_FLOATS, "int8"):
        raise InvalidValue(
            field=name,
            value=asked,
            limit=f"must be one of {', '.join(_FLOATS)}, int8 or auto",
            remedy="Give one of these",
        )
    return (asked,)
