"""Answer: one request run to its end, its text handed on as it comes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpage.serve import LLM, BeamSearchParams, RequestOutput, SamplingParams


def _discard(_: str) -> None:
    """Nobody reads along."""


def _never() -> bool:
    return False


def answer(
    llm: "LLM",
    prompt_tokens: Sequence[int],
    params: "SamplingParams | BeamSearchParams",
    *,
    prompt: str | None = None,
    write: Callable[[str], None] = _discard,
    is_stopped: Callable[[], bool] = _never,
) -> "RequestOutput":
    """Return what the model makes of a prompt.

    Args:
        llm: the model.
        prompt_tokens: the prompt as token ids.
        params: how to go on from it.
        prompt: its text, for the output.
        write: takes the text as it comes; with several continuations, theirs in turns.
        is_stopped: asked after every step; the answer ends where it is once that is so.

    Raises:
        InvalidValue: the prompt or a parameter is out of range.
        OutOfMemory: the request could not finish.
    """
    request = llm.engine.add(prompt_tokens, params, prompt=prompt)
    while not request.is_finished:
        llm.engine.step()
        if is_stopped() and not request.is_finished:
            llm.engine.abort(request.request_id)
        for chunk in request.take_chunks():
            write(chunk.text)
    return request.output()
