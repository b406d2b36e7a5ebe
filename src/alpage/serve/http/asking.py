"""Asking: how a request's fields become parameters of the engine."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from alpage.serve.guide import Guide
from alpage.serve.http.refusals import Refusal, invalid, unsupported
from alpage.serve.http.schema import ChatRequest, CompletionRequest, Generates
from alpage.serve.intake import Limits
from alpage.serve.params import BeamSearchParams, SamplingParams

MAX_TOP_LOGPROBS = 20
# OpenAI's, of a completion.
_DEFAULT_MAX_TOKENS: Final = 16
_COMMON: Final = ("min_tokens", "ignore_eos", "skip_special_tokens", "stop_token_ids")
_DRAWING: Final = (
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "include_stop_str_in_output",
)


def completion_params(
    asked: CompletionRequest, num_prompt_tokens: int, limits: Limits, guide: Guide | None = None
) -> SamplingParams | BeamSearchParams:
    """Return what a completion asks for, of a prompt of that many tokens.

    Raises:
        Refusal: it asks for what cannot be.
        InvalidValue: a value is out of range.
    """
    if asked.suffix:
        raise unsupported("suffix", "is not supported: models here only continue")
    num_left = limits.max_model_len - num_prompt_tokens
    default = max(1, min(_DEFAULT_MAX_TOKENS, num_left))
    max_tokens = default if asked.max_tokens is None else asked.max_tokens
    if max_tokens == 0 and not asked.echo:
        raise invalid("'max_tokens' must be at least 1, or 0 with 'echo'.", "max_tokens")
    check_length("prompt", "max_tokens", num_prompt_tokens, max_tokens, limits)
    own: dict[str, Any] = {"logprobs": asked.logprobs, "guide": guide}
    if asked.echo:
        own["prompt_logprobs"] = asked.logprobs
    return _params(asked, own, max_tokens, limits)


def chat_params(
    asked: ChatRequest, num_prompt_tokens: int, limits: Limits, guide: Guide | None = None
) -> SamplingParams | BeamSearchParams:
    """Return what a chat asks for, of a prompt of that many tokens.

    Raises:
        Refusal: it asks for what cannot be.
        InvalidValue: a value is out of range.
    """
    if asked.top_logprobs is not None:
        if not asked.logprobs:
            raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        if not 0 <= asked.top_logprobs <= MAX_TOP_LOGPROBS:
            message = f"'top_logprobs' must be between 0 and {MAX_TOP_LOGPROBS}."
            raise invalid(message, "top_logprobs")
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    given: int | None = getattr(asked, field)
    if given is not None and given < 1:
        raise invalid(f"'{field}' must be at least 1.", field)
    num_left = max(1, limits.max_model_len - num_prompt_tokens)
    max_tokens = num_left if given is None else given
    check_length("messages", field, num_prompt_tokens, max_tokens, limits)
    own: dict[str, Any] = {"guide": guide}
    if asked.logprobs:
        own["logprobs"] = asked.top_logprobs or 0
    return _params(asked, own, max_tokens, limits)


def check_generates(asked: Generates) -> None:
    """Refuse what no completion and no chat can have.

    Raises:
        Refusal: it asks for that.
    """
    if asked.stream_options is not None and not asked.stream:
        raise invalid("'stream_options' needs 'stream' to be true.", "stream_options")
    options = asked.stream_options
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        message = "'continuous_usage_stats' needs 'include_usage' to be true."
        raise invalid(message, "stream_options.continuous_usage_stats")
    n, best_of = asked.n or 1, asked.best_of
    if asked.stream and best_of is not None and best_of > n:
        message = "'best_of' above 'n' cannot be streamed: the best are known at the end."
        raise invalid(message, "best_of")


def check_chat(asked: ChatRequest) -> None:
    """Refuse what this server's chats do not have.

    Raises:
        Refusal: it asks for that.
    """
    if asked.functions:
        raise unsupported("functions", "is not supported: 'tools' is")
    if asked.function_call not in (None, "none", "auto"):
        raise unsupported("function_call", "is not supported: 'tool_choice' is")
    if not asked.messages:
        raise invalid("'messages' must hold at least one message.", "messages")


def _params(
    asked: Generates, own: Mapping[str, Any], max_tokens: int, limits: Limits
) -> SamplingParams | BeamSearchParams:
    _check_ids("logit_bias", list(asked.logit_bias or ()), limits)
    _check_ids("stop_token_ids", asked.stop_token_ids or (), limits)
    given: dict[str, Any] = {"n": 1 if asked.n is None else asked.n, "max_tokens": max_tokens}
    given |= _given(asked, _COMMON)
    if asked.use_beam_search:
        return _beam_params(asked, own, given)
    if asked.length_penalty is not None:
        raise invalid("'length_penalty' needs 'use_beam_search' to be true.", "length_penalty")
    return SamplingParams(**given, **_given(asked, _DRAWING), **own)


def _beam_params(
    asked: Generates, own: Mapping[str, Any], given: Mapping[str, Any]
) -> BeamSearchParams:
    width = given["n"] if asked.best_of is None else asked.best_of
    # Beams are not drawn; clients that always send a temperature mean no harm.
    drawing = _given(asked, _DRAWING)
    drawing.pop("best_of", None)
    if drawing.get("temperature") in (0, 1):
        del drawing["temperature"]
    refused = [*drawing, *(name for name, value in own.items() if value is not None)]
    if refused:
        raise unsupported(refused[0], "has no meaning in beam search, which draws nothing")
    return BeamSearchParams(beam_width=width, **given, **_given(asked, ("length_penalty",)))


def _given(asked: Generates, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(asked, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_length(
    prompt_field: str, field: str, num_prompt: int, max_tokens: int, limits: Limits
) -> None:
    """Refuse a prompt and an answer that the model's length cannot hold.

    Raises:
        Refusal: it cannot.
    """
    if num_prompt + max_tokens > limits.max_model_len:
        raise too_long(prompt_field, f"{num_prompt}", field, max_tokens, limits)


def too_long(
    prompt_field: str, num_prompt: str, field: str, max_tokens: int, limits: Limits
) -> Refusal:
    """Return the refusal of a prompt and an answer that the model's length cannot hold."""
    return invalid(
        f"This model's maximum context length is {limits.max_model_len} tokens. This request asks "
        f"for more: {num_prompt} in '{prompt_field}' and {max_tokens} in '{field}'. Shorten the "
        "one or lower the other.",
        prompt_field,
        "context_length_exceeded",
    )


def _check_ids(field: str, ids: Sequence[int], limits: Limits) -> None:
    stranger = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
    if stranger is not None:
        last = limits.vocab_size - 1
        raise invalid(f"'{field}' has the token id {stranger}; ids go from 0 to {last}.", field)
