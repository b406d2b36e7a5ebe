"""Beam: search for the likeliest continuations, all hypotheses a step at a time.

Hypotheses are sequences of one group: those that share a parent share its pages, and the first
write to a shared page copies it (Kwon et al. 2023, arXiv:2309.06180, section 4.4). Scores, order
and ends are those of Hugging Face's beam search: a step looks at the (1 + ends) x width likeliest
extensions; the likeliest width that do not end go on; those among the first width that do end are
finished, scored by log-probability over length to the power `length_penalty`, and the best width of
them kept.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import final

from alpage.serve.completion import Ending
from alpage.serve.decoders import to_chunk
from alpage.serve.detokenize import Decodes, Detokenizer
from alpage.serve.outputs import CompletionOutput, FinishReason, StreamChunk
from alpage.serve.params import BeamSearchParams
from alpage.serve.results import RowResult
from alpage.serve.sequence import Child, Sequence


@final
@dataclass(frozen=True, slots=True)
class _Extension:
    """A hypothesis and one token more."""

    logprob: float  # of all its output
    parent: Sequence
    token: int


@final
@dataclass(frozen=True, slots=True)
class _Finished:
    score: float
    logprob: float
    token_ids: tuple[int, ...]
    reason: FinishReason


@final
class BeamSearch:
    """Beam search over one prompt."""

    def __init__(
        self,
        params: BeamSearchParams,
        ending: Ending,
        num_prompt_tokens: int,
        tokenizer: Decodes | None,
        context: Seq[int] = (),
    ) -> None:
        self._params = params
        self._ending = ending
        self._num_prompt_tokens = num_prompt_tokens
        self._tokenizer = tokenizer
        self._context = tuple(context)
        self._logprobs = [0.0]  # of the running hypotheses, by index
        self._finished: list[_Finished] = []
        self._is_over = False
        self._has_streamed = False

    @property
    def is_finished(self) -> bool:
        """Whether no running hypothesis can come before the finished ones any more."""
        return self._is_over

    def advance(self, parents: Seq[Sequence], results: Seq[RowResult]) -> list[Child]:
        """Extend every hypothesis and keep the likeliest."""
        width = self._params.beam_width
        num_tokens = len(parents[0].tokens) - self._num_prompt_tokens + 1
        extensions = [
            _Extension(self._logprobs[parent.index] + logprob, parent, token)
            for parent, result in zip(parents, results, strict=True)
            for token, logprob in result.candidates
        ]
        extensions.sort(key=lambda extension: -extension.logprob)
        going_on: list[_Extension] = []
        for place, extension in enumerate(extensions[: self._num_looked_at(results)]):
            reason = self._ending.reason(extension.token, num_tokens)
            if reason is None:
                going_on.append(extension)
            elif place < width:
                self._finish(extension, num_tokens, reason)
        self._finished.sort(key=lambda finished: -finished.score)
        del self._finished[width:]
        del going_on[width:]
        self._is_over = not going_on or not self._can_improve(going_on[0].logprob, num_tokens)
        if self._is_over:
            return []
        self._logprobs = [extension.logprob for extension in going_on]
        return [Child(e.parent, e.token, index) for index, e in enumerate(going_on)]

    def allowed(self, index: int) -> bytes:  # noqa: ARG002 - hypotheses are free
        """Return nothing, for all tokens may come next."""
        return b""

    def abort(self) -> None:
        """End with what is finished."""
        self._is_over = True

    def take_chunks(self) -> list[StreamChunk]:
        """Return the hypotheses once they are final: until then any may still be overtaken."""
        if not self._is_over or self._has_streamed:
            return []
        self._has_streamed = True
        return [to_chunk(output) for output in self.outputs()]

    def outputs(self) -> list[CompletionOutput]:
        """Return the best hypotheses, the best first."""
        num_outputs = self._params.n or self._params.beam_width
        return [
            CompletionOutput(
                index=index,
                text=self._text(finished),
                token_ids=finished.token_ids,
                finish_reason=finished.reason,
                cumulative_logprob=finished.logprob,
                score=finished.score,
            )
            for index, finished in enumerate(self._finished[:num_outputs])
        ]

    def _num_looked_at(self, results: Seq[RowResult]) -> int:
        """As many extensions as each hypothesis offers: enough that `width` of them do not end."""
        return max(len(result.candidates) for result in results)

    def _finish(self, extension: _Extension, num_tokens: int, reason: FinishReason) -> None:
        output = extension.parent.tokens[self._num_prompt_tokens :]
        score = extension.logprob / num_tokens**self._params.length_penalty
        token_ids = (*output, extension.token)
        self._finished.append(_Finished(score, extension.logprob, token_ids, reason))

    def _can_improve(self, best_logprob: float, num_tokens: int) -> bool:
        """Whether a running hypothesis may still come before the worst of the finished ones."""
        params = self._params
        if len(self._finished) < params.beam_width:
            return True
        if params.early_stopping is True:
            return False
        looks_ahead = params.early_stopping == "never" and params.length_penalty > 0
        length = self._ending.max_tokens if looks_ahead else num_tokens
        best_score: float = best_logprob / length**params.length_penalty
        return best_score > self._finished[-1].score

    def _text(self, finished: _Finished) -> str:
        if self._tokenizer is None:
            return ""
        token_ids = list(finished.token_ids)
        if finished.reason == "stop":
            token_ids.pop()
        detokenizer = Detokenizer(
            self._tokenizer,
            self._context,
            skip_special_tokens=self._params.skip_special_tokens,
        )
        return detokenizer.push(token_ids) + detokenizer.flush()
