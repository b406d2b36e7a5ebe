"""Decoders: how a request's sequences go on after a step. Pure decisions, one file a strategy.

The engine gives a decoder the sequences that took a step with what they drew, and gets the next
generation
back: a sequence without a child is done, one with several forks.
"""

from collections.abc import Sequence as Seq
from typing import Protocol, final

from alpage.serve.completion import Completion, Ending, Matches, best
from alpage.serve.detokenize import Decodes
from alpage.serve.outputs import CompletionOutput, FinishReason, StreamChunk
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.sequence import Child, Sequence


class Decoder(Protocol):
    """One request's strategy, and what it has found."""

    @property
    def is_finished(self) -> bool:
        """Whether the request is done."""

    def advance(self, parents: Seq[Sequence], results: Seq[RowResult]) -> list[Child]:
        """Return the next generation of the sequences that took a step."""

    def allowed(self, index: int) -> bytes:
        """Return what continuation `index` may draw next, a bit for each token; empty if all."""

    def abort(self) -> None:
        """End the request where it is."""

    def take_chunks(self) -> list[StreamChunk]:
        """Return what was found since the last call."""

    def outputs(self) -> list[CompletionOutput]:
        """Return all that was found, once the request is done."""


@final
class ParallelSampling:
    """Independent continuations: the prompt's step draws them all, then each goes its own way.

    Without tokens to draw they end with that step.
    """

    def __init__(
        self,
        params: SamplingParams,
        ending: Ending,
        tokenizer: Decodes | None,
        context: Seq[int] = (),
        matchers: Seq[Matches] | None = None,
    ) -> None:
        self._n = params.n
        self._is_prompt_only = ending.max_tokens == 0
        self._completions = [
            Completion(
                index, params, ending, tokenizer, context, matchers[index] if matchers else None
            )
            for index in range(params.num_sequences)
        ]
        self._open: dict[int, Completion] = dict(enumerate(self._completions))

    @property
    def is_finished(self) -> bool:
        """Whether every continuation has ended."""
        return all(completion.finish_reason for completion in self._completions)

    def advance(self, parents: Seq[Sequence], results: Seq[RowResult]) -> list[Child]:
        """Give every continuation its token."""
        if self._is_prompt_only:
            self._end("length")
        children = []
        for parent, result in zip(parents, results, strict=True):
            for draw, token in enumerate(result.tokens):
                index = parent.index + draw
                completion = self._completions[index]
                completion.push(token, result.logprobs[draw] if result.logprobs else None)
                if completion.finish_reason is None:
                    children.append(Child(parent, token, index))
        return children

    def allowed(self, index: int) -> bytes:
        """Return what a continuation may draw next; at first all may draw the same."""
        return self._completions[index].allowed

    def abort(self) -> None:
        """End all continuations where they are."""
        self._end("abort")

    def take_chunks(self) -> list[StreamChunk]:
        """Return what each continuation gained; if the best are chosen, nothing until the end."""
        if self._n < len(self._completions):
            return self._chosen_chunks() if self.is_finished else []
        chunks = {index: completion.take_chunk() for index, completion in self._open.items()}
        self._open = {i: c for i, c in self._open.items() if c.finish_reason is None}
        return [chunk for chunk in chunks.values() if chunk.token_ids or chunk.finish_reason]

    def outputs(self) -> list[CompletionOutput]:
        """Return the continuations, or the best of them."""
        return [completion.output(index) for index, completion in enumerate(self._chosen())]

    def _end(self, reason: FinishReason) -> None:
        for completion in self._completions:
            completion.end(reason)

    def _chosen(self) -> list[Completion]:
        is_all = self._n == len(self._completions)
        return self._completions if is_all else best(self._completions, self._n)

    def _chosen_chunks(self) -> list[StreamChunk]:
        return [to_chunk(output) for output in self.outputs()]


def to_chunk(output: CompletionOutput) -> StreamChunk:
    """Return a whole continuation as one chunk."""
    return StreamChunk(
        index=output.index,
        text=output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
    )
