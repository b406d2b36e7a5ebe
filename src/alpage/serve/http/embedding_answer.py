"""Embedding answer: what the model makes of prompts, as numbers of one length."""

import base64
import math
import struct
from collections.abc import Sequence
from typing import final

from alpage.serve.http.answers import Answer
from alpage.serve.http.engine_messages import Ask
from alpage.serve.http.replies import Embedding, EmbeddingReply, EmbeddingUsage
from alpage.serve.http.schema import CompletionRequest, EmbeddingRequest
from alpage.serve.outputs import RequestOutput


@final
class EmbeddingAnswer(Answer):
    """What is told of embeddings.

    Args:
        model: what the model is called.
        asked: the request.
        completion: the same as a completion.
        asks: its prompts, as the engine got them.
    """

    def __init__(
        self,
        model: str,
        asked: EmbeddingRequest,
        completion: CompletionRequest,
        asks: Sequence[Ask],
    ) -> None:
        super().__init__("embd-", model, completion, asks)
        self._is_base64 = asked.encoding_format == "base64"

    def whole(self, outputs: Sequence[RequestOutput]) -> EmbeddingReply:
        """Return the embeddings."""
        data = [
            Embedding(index=number, embedding=self._shown(output.embedding or ()))
            for number, output in enumerate(outputs)
        ]
        num_tokens = self.usage.prompt_tokens
        usage = EmbeddingUsage(num_tokens, num_tokens)
        return EmbeddingReply(data=data, model=self.model, usage=usage)

    def _shown(self, state: Sequence[float]) -> Sequence[float] | str:
        length = math.hypot(*state) or 1.0
        numbers = [number / length for number in state]
        if not self._is_base64:
            return numbers
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
