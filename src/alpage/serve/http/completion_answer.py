"""Completion answer: continuations, with their prompts before them if asked for."""

from collections.abc import Iterator, Sequence
from typing import final

from alpage.serve.http.answers import Answer
from alpage.serve.http.engine_messages import Ask, Piece
from alpage.serve.http.logprobs import Offsets, completion_logprobs
from alpage.serve.http.replies import CompletionChoice, CompletionReply
from alpage.serve.http.schema import CompletionRequest
from alpage.serve.http.texts import Texts
from alpage.serve.outputs import RequestOutput, StreamChunk, TokenLogprobs


@final
class CompletionAnswer(Answer):
    """What a completion is told.

    Args:
        model: what the model is called.
        asked: the request.
        asks: its prompts, as the engine got them.
        texts: spell tokens.
    """

    def __init__(
        self, model: str, asked: CompletionRequest, asks: Sequence[Ask], texts: Texts
    ) -> None:
        super().__init__("cmpl-", model, asked, asks)
        self._texts = texts
        self._has_echo = bool(asked.echo)
        self._has_logprobs = asked.logprobs is not None
        self._skip_special_tokens = asked.skip_special_tokens is not False
        # Of the continuations that have begun.
        self._offsets: dict[int, Offsets] = {}

    def whole(self, outputs: Sequence[RequestOutput]) -> CompletionReply:
        """Return the completion."""
        choices = [choice for piece in self.pieces(outputs) for choice in self._choices(piece)]
        reply = self._reply(choices)
        reply.usage = self.usage
        return reply

    def parts(self, piece: Piece) -> Iterator[CompletionReply]:
        """Yield a part for each continuation that has something to show."""
        for choice in self._choices(piece):
            if choice.text or choice.logprobs or choice.token_ids or choice.finish_reason:
                yield self._reply([choice])

    def last(self) -> CompletionReply:
        """Return the part that tells the usage."""
        reply = self._reply([])
        reply.usage = self.usage
        return reply

    def _reply(self, choices: Sequence[CompletionChoice]) -> CompletionReply:
        return CompletionReply(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.part_usage,
        )

    def _choices(self, piece: Piece) -> list[CompletionChoice]:
        self.count(piece)
        return [self._choice(piece, chunk) for chunk in piece.chunks]

    def _choice(self, piece: Piece, chunk: StreamChunk) -> CompletionChoice:
        index = piece.number * self.num_choices + chunk.index
        ask = self.asks[piece.number]
        text, tokens = chunk.text, chunk.token_ids
        entries: Sequence[TokenLogprobs | None] = chunk.logprobs or ()
        is_first = index not in self._offsets
        if is_first:
            has_special = not self._skip_special_tokens
            self._offsets[index] = Offsets(self._texts, has_special=has_special)
            if self._has_echo:
                text = self._prompt_text(ask) + text
                tokens = [*ask.prompt_tokens, *tokens]
                entries = [*(piece.prompt_logprobs or ()), *entries]
        choice = CompletionChoice(
            index=index,
            text=text,
            finish_reason=chunk.finish_reason,
            stop_reason=chunk.stop_reason,
        )
        if self._has_logprobs and tokens:
            offsets = self._offsets[index]
            choice.logprobs = completion_logprobs(tokens, entries, self._texts, offsets)
        if self.returns_token_ids:
            choice.token_ids = chunk.token_ids
            if is_first:
                choice.prompt_token_ids = ask.prompt_tokens
        return choice

    def _prompt_text(self, ask: Ask) -> str:
        if ask.prompt is not None:
            return ask.prompt
        skip = self._skip_special_tokens
        return self._texts.decode(ask.prompt_tokens, skip_special_tokens=skip)
