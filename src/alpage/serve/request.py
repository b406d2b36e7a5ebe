"""Request: one request from arrival to answer, as the engine sees it."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import final

from alpage.serve.batch import Row
from alpage.serve.completion import decoded
from alpage.serve.decoders import Decoder
from alpage.serve.detokenize import Decodes
from alpage.serve.outputs import RequestMetrics, RequestOutput, StreamChunk, TokenLogprobs
from alpage.serve.params import SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.sequence import Child, Group, Sequence
from alpage.serve.slots import DrawRule


@final
class Request:
    """A group of sequences, how they draw and grow, and what is known of their making."""

    def __init__(
        self,
        group: Group,
        decoder: Decoder,
        rule: DrawRule,
        *,
        prompt: str | None,
        tokenizer: Decodes | None,
        arrival_s: float,
    ) -> None:
        self.group = group
        self.rule = rule
        self.arrival_s = arrival_s
        self.token_times_s: list[float] = []
        self._decoder = decoder
        self._prompt = prompt
        self._tokenizer = tokenizer
        # By position, so that a prompt computed again after a preemption changes nothing.
        num_wanted = len(group.prompt_tokens) if group.wants_prompt_logprobs else 0
        self._prompt_logprobs: list[TokenLogprobs | None] = [None] * num_wanted
        self._embedding: Seq[float] = ()

    @property
    def request_id(self) -> str:
        """Its name."""
        return self.group.request_id

    @property
    def is_guided(self) -> bool:
        """Whether its text must have some form."""
        return isinstance(self.rule.params, SamplingParams) and self.rule.params.guide is not None

    @property
    def is_finished(self) -> bool:
        """Whether `output` has all that there will be."""
        return self._decoder.is_finished

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """Those of the prompt, if asked for; complete once the prompt is."""
        return tuple(self._prompt_logprobs) or None

    def guided(self, row: Row) -> Row:
        """Return a row of a step that knows what it may draw."""
        allowed = self._decoder.allowed(row.index) if row.num_draws else b""
        return replace(row, allowed=allowed) if allowed else row

    def advance(
        self, rows: Seq[tuple[Row, RowResult]], now_s: float
    ) -> tuple[Seq[Sequence], list[Child]]:
        """Take what the rows of a step gave.

        Returns the sequences that drew tokens, or came to the end of a prompt behind which nothing
        is drawn: none while the prompt is incomplete; and their children.
        """
        by_slot = {sequence.slot: sequence for sequence in self.group.sequences}
        parents, results = [], []
        for row, result in rows:
            for place, entry in enumerate(result.prompt_logprobs, start=row.start + 1):
                self._prompt_logprobs[place] = decoded(entry, self._tokenizer)
            self._embedding = self._embedding or result.state
            if row.num_draws or self._is_all(row):
                parents.append(by_slot[row.slot])
                results.append(result)
        if not parents:
            return [], []
        self.token_times_s.append(now_s)
        return parents, self._decoder.advance(parents, results)

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
            prompt_logprobs=self.prompt_logprobs,
            embedding=self._embedding or None,
            metrics=RequestMetrics(
                arrival_s=self.arrival_s,
                first_token_s=times_s[0] if times_s and not self.group.is_prompt_only else None,
                finished_s=times_s[-1] if times_s else self.arrival_s,
                cached_tokens=self.group.num_cached_tokens,
            ),
        )

    def _is_all(self, row: Row) -> bool:
        return self.group.is_prompt_only and row.context == len(self.group.prompt_tokens)
