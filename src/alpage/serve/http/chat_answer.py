"""Chat answer: the assistant's next message."""

from collections.abc import Iterator, Sequence
from typing import final

from alpage.serve.http.answers import Answer
from alpage.serve.http.engine_messages import Ask, Piece
from alpage.serve.http.logprobs import chat_logprobs
from alpage.serve.http.replies import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    ToolCallPart,
)
from alpage.serve.http.schema import ChatRequest
from alpage.serve.http.speech import Speech
from alpage.serve.http.texts import Texts
from alpage.serve.http.tools import Tooling
from alpage.serve.outputs import RequestOutput, StreamChunk


@final
class ChatCompletionAnswer(Answer):
    """What a chat is told.

    Args:
        model: what the model is called.
        asked: the request.
        asks: the conversation, as the engine got it.
        texts: spell tokens.
        tooling: the tools that may be called.
    """

    def __init__(
        self,
        model: str,
        asked: ChatRequest,
        asks: Sequence[Ask],
        texts: Texts,
        tooling: Tooling | None,
    ) -> None:
        super().__init__("chatcmpl-", model, asked, asks)
        self._texts = texts
        is_held = any(ask.has_form for ask in asks)
        self._speeches = [Speech(tooling, is_held=is_held) for _ in range(self.num_choices)]
        self._num_top = asked.top_logprobs or 0
        self._begun: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput]) -> ChatReply:
        """Return the chat completion."""
        (piece,) = self.pieces(outputs)
        self.count(piece)
        choices = [self._choice(chunk) for chunk in piece.chunks]
        if self.returns_token_ids:
            for choice, chunk in zip(choices, piece.chunks, strict=True):
                choice.token_ids = chunk.token_ids
        return ChatReply(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage,
        )

    def parts(self, piece: Piece) -> Iterator[ChatChunk]:
        """Yield the role, then the text as it comes, then how it ended."""
        self.count(piece)
        for chunk in piece.chunks:
            if chunk.index not in self._begun:
                self._begun.add(chunk.index)
                yield self._part(chunk.index, ChatDelta(role="assistant", content=""))
            speech = self._speeches[chunk.index]
            found = speech.take(chunk)
            text = "".join(item for item in found if isinstance(item, str))
            logprobs = self._logprobs(chunk)
            if text or logprobs or self.returns_token_ids:
                part = self._part(chunk.index, ChatDelta(content=text))
                (choice,) = part.choices
                choice.logprobs = logprobs
                if self.returns_token_ids:
                    choice.token_ids = chunk.token_ids
                yield part
            for item in found:
                if isinstance(item, ToolCallPart):
                    yield self._part(chunk.index, ChatDelta(tool_calls=[item]))
            if chunk.finish_reason is not None:
                part = self._part(chunk.index, ChatDelta())
                (choice,) = part.choices
                choice.finish_reason = speech.finish_reason(chunk)
                choice.stop_reason = chunk.stop_reason
                yield part

    def last(self) -> ChatChunk:
        """Return the part that tells the usage."""
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=[], usage=self.usage
        )

    def _choice(self, chunk: StreamChunk) -> ChatChoice:
        speech = self._speeches[chunk.index]
        text = "".join(item for item in speech.take(chunk) if isinstance(item, str))
        message = ChatAnswer(content=None if speech.calls and not text else text)
        if speech.calls:
            message.tool_calls = speech.calls
        return ChatChoice(
            index=chunk.index,
            message=message,
            logprobs=self._logprobs(chunk),
            finish_reason=speech.finish_reason(chunk),
            stop_reason=chunk.stop_reason,
        )

    def _part(self, index: int, delta: ChatDelta) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[ChatChunkChoice(index=index, delta=delta)],
            usage=self.part_usage,
        )

    def _logprobs(self, chunk: StreamChunk) -> ChatLogprobs | None:
        if not chunk.logprobs:
            return None
        return chat_logprobs(chunk.token_ids, chunk.logprobs, self._num_top, self._texts)
