"""Answers: what a request is told, whole or as it comes."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from msgspec import UNSET, Struct, UnsetType

from alpage.serve.decoders import to_chunk
from alpage.serve.http.engine_messages import Ask, Piece
from alpage.serve.http.replies import PromptTokensDetails, Usage
from alpage.serve.http.schema import Generates
from alpage.serve.outputs import RequestOutput


class Answer(ABC):
    """The form of one request's answer.

    Args:
        prefix: of its name.
        model: what the model is called.
        asked: the request.
        asks: its prompts, as the engine got them.
    """

    def __init__(self, prefix: str, model: str, asked: Generates, asks: Sequence[Ask]) -> None:
        self.id = prefix + secrets.token_hex(16)
        self.model = model
        self.created = int(time.time())
        self.asks = asks
        # All prompts of a request have as many continuations.
        self.num_choices = 1 if asked.n is None else asked.n
        self.returns_token_ids = bool(asked.return_token_ids)
        options = asked.stream_options
        self.has_usage = options is not None and bool(options.include_usage)
        self._has_running_usage = options is not None and bool(options.continuous_usage_stats)
        self._num_completion_tokens = 0
        self._num_cached_tokens = 0

    @abstractmethod
    def whole(self, outputs: Sequence[RequestOutput]) -> Struct:
        """Return the answer, once all has come."""

    def begin(self) -> Iterator[Struct]:
        """Yield what is said as soon as the engine has the request: in most forms nothing."""
        return iter(())

    def parts(self, piece: Piece) -> Iterator[Struct]:
        """Yield what is said of what came, in forms that can be streamed."""
        raise AssertionError(f"{piece} came of what is not streamed")

    def last(self) -> Struct:
        """Return the part without choices that tells the usage, in forms that have one."""
        raise AssertionError("nobody can ask for it")

    def event_name(self, part: Struct) -> str | None:  # noqa: ARG002
        """Return what a part is called as an event, in forms in which it has a name."""
        return None

    def pieces(self, outputs: Sequence[RequestOutput]) -> list[Piece]:
        """Return the whole outputs as if each had come at once."""
        return [
            Piece(
                number=number,
                chunks=[to_chunk(choice) for choice in output.outputs],
                prompt_logprobs=output.prompt_logprobs,
                output=output,
            )
            for number, output in enumerate(outputs)
        ]

    def count(self, piece: Piece) -> None:
        """Note what came, for the usage."""
        self._num_completion_tokens += sum(len(chunk.token_ids) for chunk in piece.chunks)
        if piece.output is not None:
            self._num_cached_tokens += piece.output.metrics.cached_tokens

    @property
    def usage(self) -> Usage:
        """What was counted so far."""
        num_prompt = sum(len(ask.prompt_tokens) for ask in self.asks)
        num_completion = self._num_completion_tokens
        details = PromptTokensDetails(self._num_cached_tokens)
        return Usage(num_prompt, num_completion, num_prompt + num_completion, details)

    @property
    def part_usage(self) -> Usage | UnsetType | None:
        """What a part says of the usage: nothing unless the request wants to know."""
        if self._has_running_usage:
            return self.usage
        return None if self.has_usage else UNSET
