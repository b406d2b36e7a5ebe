"""Options: what commands that run a model have in common."""

from typing import Annotated, TypeAlias

import typer

from alpage.errors import InvalidValue

DEFAULT_MODEL = "smollm2-135m"

ModelArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A short name (see: alpage models), a model directory or a .gguf file.",
    ),
]
TemperatureOption: TypeAlias = Annotated[
    float, typer.Option(help="0 takes the likeliest tokens: the same text every time.")
]
SeedOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Same seed, same text.", show_default="random")
]
DtypeOption: TypeAlias = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
DeviceOption: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
KvMemoryOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Memory for keys and values, such as 2GiB.", show_default="what is free"),
]
QuantizationOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="int8 keeps matrices in 8 bits, int4 those of a GGUF file in 4.",
        show_default="as dtype says",
    ),
]
KvDtypeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="int8 keeps keys and values in 8 bits.", show_default="as dtype says"),
]
DeterministicOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Start only where a request gets the same bits in any batch."
    ),
]
DevicesOption: TypeAlias = Annotated[
    int, typer.Option(help="Processes that the model is cut over, on a CPU.")
]
ReplicasOption: TypeAlias = Annotated[
    int, typer.Option(help="Copies of the model that share the devices and the requests.")
]
StagesOption: TypeAlias = Annotated[
    int, typer.Option(help="Stages of a pipeline that each copy is cut into first.")
]
LayoutOption: TypeAlias = Annotated[
    str, typer.Option(help="How a stage is cut: auto, ws_1d, ws_2d or megatron.")
]
PrefillLayoutOption: TypeAlias = Annotated[
    str,
    typer.Option(help="How it is cut in steps of many tokens: auto, or wg_x, wg_xy, wg_xyz."),
]
AttentionOption: TypeAlias = Annotated[
    str, typer.Option(help="What a process attends for: heads, sequences of a batch, or auto.")
]
TargetItlOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--target-itl",
        help="Seconds between tokens that prompts of others should not exceed, such as 0.05.",
        show_default="none",
    ),
]


def num_wanted(max_tokens: int | None, default: int) -> int:
    """Return the tokens to print at most.

    Raises:
        InvalidValue: none are wanted, which is for those who only look at a prompt.
    """
    if max_tokens == 0:
        raise InvalidValue(
            field="max_tokens",
            value=0,
            limit="must be at least 1, for there is nothing to print else",
            remedy=f"Leave it out for {default}",
        )
    return default if max_tokens is None else max_tokens
