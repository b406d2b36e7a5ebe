"""Completion: one continuation as it grows: its tokens, its text, and why it ends."""

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, final

from alpage.serve.detokenize import Decodes, Detokenizer
from alpage.serve.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    StreamChunk,
    TokenLogprobs,
)
from alpage.serve.params import SamplingParams


class Matches(Protocol):
    """Where a continuation is in a form; see `grammars.Matcher`."""

    allowed: bytes

    def push(self, token: int) -> FinishReason | None:
        """Take the next token; return how the text ends, if it ends with it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What ends a continuation.

    Attributes:
        eos_ids: the model's own ends; empty where they are ignored.
        stop_ids: the request's.
        max_tokens: output tokens at most.
    """

    eos_ids: frozenset[int]
    stop_ids: frozenset[int]
    max_tokens: int

    @property
    def ids(self) -> frozenset[int]:
        """All tokens that end it."""
        return self.eos_ids | self.stop_ids

    def reason(self, token: int, num_tokens: int) -> FinishReason | None:
        """Return why a continuation of `num_tokens` that ends with `token` is over, if it is."""
        if token in self.ids:
            return "stop"
        return "length" if num_tokens >= self.max_tokens else None


@final
class Completion:
    """A continuation that is being drawn.

    Args:
        index: which of the request's it is.
        params: what the request asked for.
        ending: what ends it.
        tokenizer: None leaves the text empty.
        context: the last tokens of the prompt.
        matcher: where it is in the form that it must have, if it must have one.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        ending: Ending,
        tokenizer: Decodes | None,
        context: Seq[int] = (),
        matcher: Matches | None = None,
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.cumulative_logprob = 0.0
        self._params = params
        self._ending = ending
        self._matcher = matcher
        self._stop_reason: str | int | None = None
        self._logprobs: list[TokenLogprobs] = []
        self._text = ""
        self._tokenizer = tokenizer
        self._detokenizer = (
            None
            if tokenizer is None
            else Detokenizer(tokenizer, context, skip_special_tokens=params.skip_special_tokens)
        )
        self._is_text_final = False
        self._num_detokenized = 0
        self._num_streamed_tokens = 0
        self._num_streamed_characters = 0

    @property
    def mean_logprob(self) -> float:
        """What `best_of` ranks by."""
        return self.cumulative_logprob / max(1, len(self.token_ids))

    @property
    def allowed(self) -> bytes:
        """The tokens that may come next, a bit each; empty if all may."""
        return b"" if self._matcher is None else self._matcher.allowed

    def push(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take the next token, and see whether it is the last."""
        assert self.finish_reason is None, "a finished continuation takes no more tokens"
        self.token_ids.append(token)
        if logprobs is not None:
            self._logprobs.append(decoded(logprobs, self._tokenizer))
            self.cumulative_logprob += logprobs[token].logprob
        self.finish_reason = self._ending.reason(token, len(self.token_ids))
        if self._matcher is not None and token not in self._ending.ids:
            self.finish_reason = self._matcher.push(token) or self.finish_reason
        if token in self._ending.stop_ids and token not in self._ending.eos_ids:
            self._stop_reason = token
        if self._params.stop_strings or self.finish_reason is not None:
            self._detokenize()

    def end(self, reason: FinishReason) -> None:
        """End it where it is."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._detokenize()

    def take_chunk(self) -> StreamChunk:
        """Return what came since the last chunk. Text that may begin a stop string is held back."""
        self._detokenize()
        is_done = self.finish_reason is not None
        num_ready = len(self._text) if is_done else len(self._text) - self._num_held_back()
        num_ready = max(num_ready, self._num_streamed_characters)
        chunk = StreamChunk(
            index=self.index,
            text=self._text[self._num_streamed_characters : num_ready],
            token_ids=tuple(self.token_ids[self._num_streamed_tokens :]),
            logprobs=self._wanted_logprobs(self._num_streamed_tokens),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        self._num_streamed_characters = num_ready
        self._num_streamed_tokens = len(self.token_ids)
        return chunk

    def output(self, index: int) -> CompletionOutput:
        """Return the finished continuation under the index it is returned by."""
        assert self.finish_reason is not None, "only what is finished is returned"
        return CompletionOutput(
            index=index,
            text=self._text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            logprobs=self._wanted_logprobs(0),
            cumulative_logprob=self.cumulative_logprob if self._logprobs else None,
        )

    def _wanted_logprobs(self, start: int) -> tuple[TokenLogprobs, ...] | None:
        return None if self._params.logprobs is None else tuple(self._logprobs[start:])

    def _detokenize(self) -> None:
        """Bring the text up to the tokens; a token that ended it is no part of it."""
        if self._is_text_final or self._detokenizer is None:
            return
        end = len(self.token_ids)
        is_ended = self.finish_reason == "stop" and self.token_ids[-1] in self._ending.ids
        if is_ended and not self._params.include_stop_str_in_output:
            end -= 1
        searched = len(self._text)
        self._text += self._detokenizer.push(self.token_ids[self._num_detokenized : end])
        self._num_detokenized = end
        if self.finish_reason is not None:
            self._text += self._detokenizer.flush()
            self._is_text_final = True
        self._find_stop_string(searched)

    def _find_stop_string(self, searched: int) -> None:
        """End at the earliest stop string that reaches into the text from `searched` on."""
        if len(self.token_ids) < self._params.min_tokens:
            return
        found = None
        for stop in self._params.stop_strings:
            place = self._text.find(stop, max(0, searched - len(stop) + 1))
            if place >= 0 and (found is None or place < found[0]):
                found = (place, stop)
        if found is not None:
            place, stop = found
            is_kept = self._params.include_stop_str_in_output
            self._text = self._text[: place + len(stop) if is_kept else place]
            self.finish_reason, self._stop_reason = "stop", stop
            self._is_text_final = True

    def _num_held_back(self) -> int:
        """Characters at the end of the text that may turn out to begin a stop string."""
        return max((_overlap(self._text, stop) for stop in self._params.stop_strings), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, less than all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


def decoded(logprobs: TokenLogprobs, tokenizer: Decodes | None) -> TokenLogprobs:
    """Return the same with the text of each token."""
    if tokenizer is None:
        return logprobs
    return {
        token: Logprob(
            entry.logprob, entry.rank, tokenizer.decode([token], skip_special_tokens=False)
        )
        for token, entry in logprobs.items()
    }


def best(completions: Collection[Completion], n: int) -> list[Completion]:
    """Return the n completions with the highest mean log-probability, the best first."""
    return sorted(completions, key=lambda completion: -completion.mean_logprob)[:n]
