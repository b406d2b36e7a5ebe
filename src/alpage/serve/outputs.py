"""Outputs: what a request gets back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

FinishReason: TypeAlias = Literal["stop", "length", "abort"]


@final
@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability that the model gave a token, and its rank, 1 for the likeliest."""

    logprob: float
    rank: int
    decoded_token: str | None = None


# By token id: the token that was chosen or stands in the prompt, and the likeliest ones.
TokenLogprobs: TypeAlias = Mapping[int, Logprob]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt.

    Attributes:
        index: which of the request's continuations this is, from 0.
        text: the decoded text, without what ended it.
        token_ids: every token that was output, the one that ended it included.
        logprobs: an entry per token, if asked for.
        cumulative_logprob: sum over the tokens, where it was computed: logprobs, best_of, beam
            search.
        score: what beam search ranked it by.
        finish_reason: "stop" (end of text, stop token or string), "length" or "abort".
        stop_reason: the stop string or stop token that ended it; None for the model's own end.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: Sequence[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None
    score: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """When things happened, in seconds of the engine's clock.

    `cached_tokens` of the prompt were found in the prefix cache and not computed.
    """

    arrival_s: float
    first_token_s: float | None
    finished_s: float
    cached_tokens: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """All that came of one request.

    `prompt_logprobs` has None for the first token, which nothing precedes. `embedding` is the state
    of the prompt's last token behind the final norm, if it was asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    embedding: Sequence[float] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChunk:
    """What one step added to one continuation.

    The texts of a continuation's chunks joined are its text. The last chunk has a `finish_reason`.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
