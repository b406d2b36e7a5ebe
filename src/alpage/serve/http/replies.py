"""Replies: answers as JSON, in OpenAI's names."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import msgspec
from msgspec import UNSET, UnsetType

TopLogprobs: TypeAlias = Mapping[str, float]


@final
class PromptTokensDetails(msgspec.Struct):
    """Of the prompt's tokens, those that were in the prefix cache."""

    cached_tokens: int


@final
class Usage(msgspec.Struct):
    """What a request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Reply(msgspec.Struct, kw_only=True):
    """An answer, or the next part of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Any]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


@final
class CompletionLogprobs(msgspec.Struct):
    """A list entry per token; None for the first of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[TopLogprobs | None]
    text_offset: list[int]


@final
class CompletionChoice(msgspec.Struct, kw_only=True):
    """A continuation, or the next part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: Sequence[int] | UnsetType = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


@final
class CompletionReply(Reply, kw_only=True):
    """A completion, or a part."""

    choices: Sequence[CompletionChoice]
    object: str = "text_completion"


@final
class TokenLogprob(msgspec.Struct):
    """A token that might have come in a place."""

    token: str
    logprob: float
    bytes: list[int]


@final
class ChatTokenLogprob(msgspec.Struct):
    """The token that did come, beside the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


@final
class ChatLogprobs(msgspec.Struct):
    """An entry per token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


@final
class CalledFunction(msgspec.Struct):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


@final
class ToolCallReply(msgspec.Struct, kw_only=True):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: str = "function"


@final
class CalledFunctionPart(msgspec.Struct, kw_only=True):
    """A function, where it is named, and what comes to its arguments."""

    name: str | UnsetType = UNSET
    arguments: str


@final
class ToolCallPart(msgspec.Struct, kw_only=True):
    """What comes to a call of a tool: the first part tells which tool it is."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunctionPart


@final
class ChatAnswer(msgspec.Struct, kw_only=True):
    """The message that a model answers with."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: Sequence[ToolCallReply] | UnsetType = UNSET


@final
class ChatDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What comes to that message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: Sequence[ToolCallPart] | UnsetType = UNSET


@final
class ChatChoice(msgspec.Struct, kw_only=True):
    """An answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: Sequence[int] | UnsetType = UNSET


@final
class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """The next part of an answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET


@final
class ChatReply(Reply, kw_only=True):
    """A chat completion."""

    choices: Sequence[ChatChoice]
    object: str = "chat.completion"


@final
class ChatChunk(Reply, kw_only=True):
    """A part of a chat completion."""

    choices: Sequence[ChatChunkChoice]
    object: str = "chat.completion.chunk"


@final
class ModelCard(msgspec.Struct, kw_only=True):
    """A name under which a model is served."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: str = "model"
    owned_by: str = "alpage"
    parent: None = None


@final
class ModelList(msgspec.Struct, kw_only=True):
    """What `GET /v1/models` says."""

    data: list[ModelCard]
    object: str = "list"


@final
class Tokens(msgspec.Struct, kw_only=True):
    """What `POST /tokenize` says."""

    count: int
    max_model_len: int
    tokens: Sequence[int]
    token_strs: Sequence[str] | None = None


@final
class Text(msgspec.Struct):
    """What `POST /detokenize` says."""

    prompt: str


@final
class EmbeddingUsage(msgspec.Struct):
    """What embeddings took, in tokens."""

    prompt_tokens: int
    total_tokens: int


@final
class Embedding(msgspec.Struct, kw_only=True):
    """Numbers, or their bytes in base64: float32, the lowest byte first."""

    index: int
    embedding: Sequence[float] | str
    object: str = "embedding"


@final
class EmbeddingReply(msgspec.Struct, kw_only=True):
    """What `POST /v1/embeddings` says."""

    data: Sequence[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


@final
class VersionReply(msgspec.Struct):
    """What `GET /version` says."""

    version: str
