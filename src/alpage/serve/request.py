"""Request: one request from arrival to answer, as the engine sees it."""

from collections.abc import Sequence as Seq
from typing import final

from alpage.serve.completion import decoded
from alpage.serve.decoders import Decoder
from alpage.serve.detokenize import Decodes
from alpage.serve.outputs import RequestMetrics, RequestOutput, StreamChunk, TokenLogprobs
from alpage.serve.sampler import RowResult
from alpage.serve.sequence import Child, Group, Sequence


@final
class Request:
    """A group of sequences, the decoder that grows them, and what is known of their making."""

    def __init__(
        self,
        group: Group,
        decoder: Decoder,
        *,
        prompt: str | None,
        tokenizer: Decodes | None,
        arrival_s: float,
    ) -> None:
        self.group = group
        self.token_times_s: list[float] = []
        self._decoder = decoder
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._arrival_s = arrival_s
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        if group.wants_prompt_logprobs:
            self._prompt_logprobs = [None]

    @property
    def request_id(self) -> str:
        """Its name."""
        return self.group.request_id

    @property
    def is_finished(self) -> bool:
        """Whether `output` has all that there will be."""
        return self._decoder.is_finished

    def advance(
        self, parents: Seq[Sequence], results: Seq[RowResult], now_s: float
    ) -> list[Child] | None:
        """Return the next generation; None while the prompt is incomplete."""
        for result in results:
            if self._prompt_logprobs is not None:
                self._prompt_logprobs += [
                    decoded(entry, self._tokenizer) for entry in result.prompt_logprobs
                ]
        drew = [
            (parent, result)
            for parent, result in zip(parents, results, strict=True)
            if result.tokens or result.candidates
        ]
        if not drew:
            return None
        self.token_times_s.append(now_s)
        return self._decoder.advance(*zip(*drew, strict=True))

    def abort(self) -> None:
        """End it where it is."""
        self._decoder.abort()

    def take_chunks(self) -> list[StreamChunk]:
        """Return what came since the last call."""
        return self._decoder.take_chunks()

    def output(self) -> RequestOutput:
        """Return the whole answer of a finished request."""
        times_s = self.token_times_s
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.group.prompt_tokens,
            outputs=tuple(self._decoder.outputs()),
            prompt_logprobs=self._prompt_logprobs and tuple(self._prompt_logprobs),
            metrics=RequestMetrics(
                arrival_s=self._arrival_s,
                first_token_s=times_s[0] if times_s else None,
                finished_s=times_s[-1] if times_s else self._arrival_s,
                cached_tokens=self.group.num_cached_tokens,
            ),
        )
