"""Schema: requests as JSON, in OpenAI's names, and in vLLM's for what OpenAI does not have.

None stands for what was left out, since clients send null for it. What has no name here is refused.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, final

import msgspec

Prompt: TypeAlias = str | list[int]


@final
class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream brings besides its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


@final
class JsonSchemaFormat(msgspec.Struct):
    """JSON of a schema; what of it cannot be kept is refused where it is strict."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


@final
class ResponseFormat(msgspec.Struct):
    """How an answer is to be written."""

    type: str
    json_schema: JsonSchemaFormat | None = None


@final
class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """The same in vLLM's words: one of them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Generates(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What completions and chats have in common."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # The same in vLLM's older words.
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # Of no effect here.
    user: str | None = None


@final
class CompletionRequest(Generates):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


@final
class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A part of a message."""

    text: str


@final
class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function that a model may call; `parameters` is the schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@final
class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool, of the one kind there is; in the order in which models have seen such."""

    type: Literal["function"]
    function: FunctionDefinition


@final
class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """A function by its name."""

    name: str


@final
class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The one tool that is to be called."""

    function: FunctionName
    type: Literal["function"]


@final
class FunctionCall(msgspec.Struct):
    """A call of a function; its arguments are JSON as text. Clients add what they made of them."""

    name: str
    arguments: str


@final
class ToolCall(msgspec.Struct):
    """A call that the assistant has made."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


@final
class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # Of no effect: what clients send back of an answer that had none of it, or made of its text.
    parsed: Any = None
    audio: None = None
    annotations: list[Any] | None = None
    function_call: None = None


@final
class ChatRequest(Generates):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    # Of no effect here.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


@final
class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    # Of no effect here.
    user: str | None = None


@final
class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /tokenize`, of a text or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


@final
class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: Sequence[int]
    model: str | None = None
