"""Bench: `alpage bench`, how fast a model runs here and how well its memory is used."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alpage.cli.bench_serve import serve
from alpage.cli.options import (
    DEFAULT_MODEL,
    AttentionOption,
    DeterministicOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    KvDtypeOption,
    KvMemoryOption,
    LayoutOption,
    ModelArgument,
    PrefillLayoutOption,
    QuantizationOption,
    ReplicasOption,
    StagesOption,
    TargetItlOption,
)
from alpage.cli.terminal import counting, working
from alpage.models import resolve
from alpage.serve import EngineConfig
from alpage.serve.loading import without_collections
from alpage.units import GB, format_bytes
from alpage.workload_file import load_workload

if TYPE_CHECKING:
    from rich.table import Table

    from alpage.serve.bench import Figures

bench_app = typer.Typer(no_args_is_help=True)
bench_app.command()(serve)


@bench_app.callback()
def bench() -> None:
    """Measure how fast a model runs here and how well its memory is used."""


@bench_app.command()
def offline(  # noqa: PLR0913 - options of a command
    workload: Annotated[Path, typer.Option(help="Requests, one JSON object a line.")],
    model: ModelArgument = DEFAULT_MODEL,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    kv_dtype: KvDtypeOption = None,
    deterministic: DeterministicOption = False,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    replicas: ReplicasOption = 1,
    stages: StagesOption = 1,
    layout: LayoutOption = "auto",
    prefill_layout: PrefillLayoutOption = "auto",
    attention_sharding: AttentionOption = "auto",
    kv_memory: KvMemoryOption = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at a time.")] = 128,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that a step computes at most.", show_default="by device"),
    ] = None,
    target_itl: TargetItlOption = None,
    seed: Annotated[int, typer.Option(help="Of random prompts and of sampling.")] = 0,
    attention_backend: Annotated[
        str, typer.Option(help="auto, native, sdpa or reference.")
    ] = "auto",
) -> None:
    """Replay a workload in this process, each request at its time, after a short warm-up."""
    # What can be refused without PyTorch is refused at once.
    specs = load_workload(workload)
    path = resolve(model)
    config = EngineConfig(
        dtype=dtype,
        quantization=quantization,  # type: ignore[arg-type]
        kv_dtype=kv_dtype,  # type: ignore[arg-type]
        deterministic=deterministic,
        device=device,
        devices=devices,
        replicas=replicas,
        stages=stages,
        layout=layout,
        prefill_layout=prefill_layout,
        attention_sharding=attention_sharding,
        kv_memory=kv_memory,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        target_itl_s=target_itl,
        attention_backend=attention_backend,
        seed=seed,
    )
    with working(f"loading {model}") as notify, without_collections():
        from alpage.models import open_checkpoint
        from alpage.serve.bench import run
        from alpage.serve.build import build_engine, tokenizer_or_none

        checkpoint = open_checkpoint(path)
        engine = build_engine(checkpoint, config, notify)
    with counting("requests", len(specs)) as advance:
        figures = run(engine, tokenizer_or_none(checkpoint), specs, seed=seed, notify=advance)
    if is_json:
        print(json.dumps(dataclasses.asdict(figures)))
    else:
        from rich.console import Console

        Console().print(_to_table(figures))


def _to_table(figures: "Figures") -> "Table":
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    itl_s = figures.itl_s_median
    for name, text in (
        ("requests", f"{figures.num_requests:,}"),
        ("prompt tokens", f"{figures.prompt_tokens:,}"),
        ("output tokens", f"{figures.output_tokens:,}"),
        ("wall time", f"{figures.wall_s:.2f} s"),
        ("output tokens per second", f"{figures.output_tokens_per_s:,.1f}"),
        ("total tokens per second", f"{figures.total_tokens_per_s:,.1f}"),
        ("time to first token, median", f"{figures.ttft_s_median * 1000:,.1f} ms"),
        ("between tokens, median", "-" if itl_s is None else f"{itl_s * 1000:,.1f} ms"),
        ("steps", f"{figures.num_steps:,}"),
        ("preemptions", f"{figures.num_preemptions:,}"),
        ("KV memory without a token", f"{figures.kv_waste:.1%}"),
        ("KV pages saved by sharing", f"{figures.kv_saved_by_sharing:.1%}"),
        ("peak memory of the process", format_bytes(figures.peak_rss_bytes)),
        ("share of the roofline", f"{figures.roofline_fraction:.1%}"),
        ("ceiling of matrix products", f"{figures.matmul_flops_per_s / GB:,.0f} GFLOP/s"),
        ("ceiling of memory reads", f"{figures.memory_bytes_per_s / GB:,.1f} GB/s"),
    ):
        table.add_row(name, text)
    return table
