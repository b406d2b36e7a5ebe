"""Chat: `alpage chat`, a conversation of many turns.

Every turn sends the whole conversation; the engine's prefix cache has kept what the last turn
computed, so only what is new takes time.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, final

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
from alpage.cli.stdin import read_lines
from alpage.cli.terminal import print_error, print_note, print_text
from alpage.cli.timings import timings_line, timings_of
from alpage.errors import AlpageError, InvalidValue
from alpage.serve import SamplingParams

if TYPE_CHECKING:
    from alpage.serve import LLM, RequestOutput

_DEFAULT_MAX_TOKENS = 512


def chat(  # noqa: PLR0913 - options of a command
    model: ModelArgument = DEFAULT_MODEL,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of an answer at most.", show_default=f"{_DEFAULT_MAX_TOKENS}, or what fits"
        ),
    ] = None,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a turn.")] = False,
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
    """Talk with a model, a line a turn. /reset forgets the conversation, /exit or Ctrl-D leaves.

    Ctrl-C stops an answer; a second one leaves.
    """
    params = SamplingParams(
        max_tokens=num_wanted(max_tokens, _DEFAULT_MAX_TOKENS),
        temperature=temperature,
    )
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
        seed=seed,
    )
    _check_max_tokens(max_tokens, llm.engine.limits.max_model_len)
    conversation = Conversation(llm, params, system=system)
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        print_note("/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer.")
    for line in _typed_lines() if is_interactive else read_lines():
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            conversation.reset()
        elif text:
            try:
                _take_turn(conversation, text, is_json=is_json, can_stop=is_interactive)
            except AlpageError as error:
                # At the keyboard the conversation goes on, as it was before this turn.
                if not is_interactive:
                    raise
                print_error(error)


def _check_max_tokens(max_tokens: int | None, max_model_len: int) -> None:
    if max_tokens is not None and max_tokens >= max_model_len:
        raise InvalidValue(
            field="--max-tokens",
            value=max_tokens,
            limit=f"leaves no room for a message within {max_model_len} tokens, the model's limit",
            remedy="Ask for fewer, or leave it out",
        )


@final
class Conversation:
    """A model and what was said so far.

    Args:
        llm: the model.
        params: how it answers; an answer also ends where the model's length does.
        system: what it is told first.

    Raises:
        Unsupported: it has no chat template.
        InvalidValue: its template takes no system message.
    """

    def __init__(self, llm: "LLM", params: SamplingParams, *, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._llm.encode_chat([*self._opening, {"role": "user", "content": "Hello"}])

    def reset(self) -> None:
        """Forget what was said."""
        self._messages = list(self._opening)

    def say(
        self, text: str, *, write: Callable[[str], None], is_stopped: Callable[[], bool]
    ) -> "RequestOutput":
        """Return the answer to a message; what was said stays as it is if there is none.

        Args:
            text: the message.
            write: takes the answer as it comes.
            is_stopped: asked after every step; once so, the answer ends where it is.

        Raises:
            InvalidValue: the conversation has become too long.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        tokens = self._llm.encode_chat(messages)
        output = answer(
            self._llm, tokens, self._fitted(len(tokens)), write=write, is_stopped=is_stopped
        )
        reply = {"role": "assistant", "content": output.outputs[0].text}
        self._messages = [*messages, reply]
        return output

    def _fitted(self, num_prompt_tokens: int) -> SamplingParams:
        max_model_len = self._llm.engine.limits.max_model_len
        num_left = max_model_len - num_prompt_tokens
        if num_left < 1:
            raise InvalidValue(
                field="conversation",
                value=f"{num_prompt_tokens} tokens",
                limit=f"leaves no room for an answer within {max_model_len} tokens",
                remedy="Type /reset to begin another, or say it in fewer words",
            )
        assert self._params.max_tokens is not None
        return dataclasses.replace(self._params, max_tokens=min(self._params.max_tokens, num_left))


def _take_turn(conversation: Conversation, text: str, *, is_json: bool, can_stop: bool) -> None:
    def write(piece: str) -> None:
        if not is_json:
            print_text(piece, end="")

    stoppable = _first_interrupt() if can_stop else nullcontext(lambda: False)
    with stoppable as is_stopped:
        output = conversation.say(text, write=write, is_stopped=is_stopped)
    timings, completion = timings_of(output), output.outputs[0]
    if is_json:
        turn = {
            "prompt": text,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "timings": dataclasses.asdict(timings),
        }
        print(json.dumps(turn), flush=True)
        return
    print_text("")
    endings = {"length": ", cut off at its longest", "abort": ", stopped"}
    print_note(timings_line(timings) + endings.get(completion.finish_reason, ""))


def _typed_lines() -> Iterator[str]:
    """Yield lines from the keyboard until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and arrow keys
    while True:
        try:
            yield _typed_line()
        except EOFError:
            print(file=sys.stderr)
            return


def _typed_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Take the first Ctrl-C as a wish to stop, which the value tells; the next interrupts.

    A wish is looked at between steps, so that no step is left half done.
    """
    usual, num_taken = signal.getsignal(signal.SIGINT), 0

    def take(_number: int, _frame: FrameType | None) -> None:
        nonlocal num_taken
        num_taken += 1
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, take)
    try:
        yield lambda: num_taken > 0
    finally:
        signal.signal(signal.SIGINT, usual)
