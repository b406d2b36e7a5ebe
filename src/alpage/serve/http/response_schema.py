"""Response schema: requests of `POST /v1/responses` as JSON, in OpenAI's names."""

from typing import Any, Literal, TypeAlias, final

import msgspec


@final
class InputPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of what was said. Clients send back what they were told of the model's own parts."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None


@final
class InputItem(msgspec.Struct, forbid_unknown_fields=True):
    """What was said, a call that was made, or its result: `type` tells which fields it has."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    # Of no effect: what clients send back of an answer.
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    parsed_arguments: Any = None


@final
class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A function that a model may call; `parameters` is the schema of its arguments."""

    type: Literal["function"]
    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


@final
class FunctionChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The one function that is to be called."""

    type: Literal["function"]
    name: str


@final
class TextFormat(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How an answer is to be written."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


@final
class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The same, where requests have it."""

    format: TextFormat | None = None


FunctionChoices: TypeAlias = Literal["none", "auto", "required"] | FunctionChoice


@final
class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/responses`. What would have to be kept from one request to the next is refused."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: FunctionChoices | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # vLLM's.
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # Of no effect here, but for metadata, which come back.
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
