"""Generate: `alpage generate`, one prompt continued."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alpage.cli.answer import answer
from alpage.cli.loading import load_llm
from alpage.cli.options import (
    DEFAULT_MODEL,
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
    TemperatureOption,
    num_wanted,
)
from alpage.cli.stdin import read_text
from alpage.cli.terminal import print_note, print_text, working
from alpage.cli.timings import first_token_from_start_s, timings_line, timings_of
from alpage.errors import InvalidValue
from alpage.serve import BeamSearchParams, Guide, SamplingParams

if TYPE_CHECKING:
    from alpage.serve import RequestOutput

_DEFAULT_MAX_TOKENS = 256


def generate(  # noqa: PLR0913 - options of a command
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Text; - takes stdin, less its last newline.")
    ],
    model: ModelArgument = DEFAULT_MODEL,
    is_chat: Annotated[
        bool,
        typer.Option("--chat", help="Answer the prompt, by the model's chat template."),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens at most.", show_default=f"{_DEFAULT_MAX_TOKENS}, or what fits"),
    ] = None,
    temperature: TemperatureOption = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens of this probability together.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Draw among this many of the likeliest tokens; 0: among all.")
    ] = 0,
    seed: SeedOption = None,
    n: Annotated[int, typer.Option(help="Continuations.")] = 1,
    beam_width: Annotated[
        int | None, typer.Option(help="Search for the likeliest text with this many beams.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text to stop before; may be given several times.")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the text must have.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Regular expression that the whole text must match.")
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    kv_dtype: KvDtypeOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    replicas: ReplicasOption = 1,
    stages: StagesOption = 1,
    layout: LayoutOption = "auto",
    kv_memory: KvMemoryOption = None,
) -> None:
    """Continue a prompt and print the text as it comes."""
    sampling = SamplingParams(
        n=n,
        max_tokens=num_wanted(max_tokens, _DEFAULT_MAX_TOKENS),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop or ()),
        guide=_guide(json_schema, regex),
    )
    params = _drawn(sampling) if beam_width is None else _searched(sampling, beam_width)
    text = read_text() if prompt == "-" else prompt
    llm = load_llm(
        model,
        dtype=dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        device=device,
        devices=devices,
        replicas=replicas,
        stages=stages,
        layout=layout,
        kv_memory=kv_memory,
    )
    if is_chat:
        tokens = llm.encode_chat([{"role": "user", "content": text}])
    else:
        tokens = llm.tokenizer.encode(text, add_special_tokens=True)
    if max_tokens is None:
        num_left = llm.engine.limits.max_model_len - len(tokens)
        fitting = max(1, min(_DEFAULT_MAX_TOKENS, num_left))
        params = dataclasses.replace(params, max_tokens=fitting)
    if is_json or n > 1 or beam_width is not None:
        with working("generating"):
            output = answer(llm, tokens, params, prompt=text)
        if is_json:
            print(json.dumps({"model": model} | _to_json(output)))
            return
        _print_continuations(output)
    else:
        output = answer(
            llm, tokens, params, prompt=text, write=lambda piece: print_text(piece, end="")
        )
        print_text("")
    from_start_s = first_token_from_start_s(output)
    print_note(timings_line(timings_of(output), first_token_from_start_s=from_start_s))


def _guide(json_schema: Path | None, regex: str | None) -> Guide | None:
    if json_schema is None:
        return None if regex is None else Guide.regex(regex)
    if regex is not None:
        raise typer.BadParameter(
            "a text has one form: leave out --json-schema", param_hint="--regex"
        )
    try:
        schema = json_schema.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidValue(
            field="json_schema",
            value=str(json_schema),
            limit=f"cannot be read: {reason}",
            remedy="Give a file with a JSON schema",
        ) from None
    return Guide.json(schema)


def _drawn(sampling: SamplingParams) -> SamplingParams:
    if sampling.n > 1 and sampling.temperature == 0:
        raise InvalidValue(
            field="n",
            value=sampling.n,
            limit=f"would be {sampling.n} times the same text at temperature 0",
            remedy="Give a temperature above 0, such as 0.8, or a beam width",
        )
    return sampling


def _searched(sampling: SamplingParams, beam_width: int) -> BeamSearchParams:
    n, max_tokens = sampling.n, sampling.max_tokens
    if sampling != SamplingParams(n=n, max_tokens=max_tokens, temperature=0.0):
        raise typer.BadParameter(
            "beam search draws nothing and knows no stop texts and no forms: leave out "
            "--temperature, --top-p, --top-k, --seed, --stop, --json-schema and --regex",
            param_hint="--beam-width",
        )
    return BeamSearchParams(beam_width=beam_width, n=n, max_tokens=max_tokens)


def _to_json(output: "RequestOutput") -> dict[str, object]:
    timings = dataclasses.asdict(timings_of(output))
    return {
        "prompt": output.prompt,
        "prompt_token_ids": list(output.prompt_token_ids),
        "outputs": [
            {
                "index": completion.index,
                "text": completion.text,
                "token_ids": list(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
                "score": completion.score,
            }
            for completion in output.outputs
        ],
        "timings": timings | {"first_token_from_start_s": first_token_from_start_s(output)},
    }


def _print_continuations(output: "RequestOutput") -> None:
    num_outputs = len(output.outputs)
    for number, completion in enumerate(output.outputs, start=1):
        if num_outputs > 1:
            print_text(f"=== {number} of {num_outputs} ===")
        print_text(completion.text)
