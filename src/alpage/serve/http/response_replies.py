"""Response replies: answers of `POST /v1/responses`, whole and as events, in OpenAI's names."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import msgspec
from msgspec import UNSET, UnsetType

from alpage.serve.http.replies import PromptTokensDetails
from alpage.serve.http.response_schema import FunctionChoices, FunctionTool, TextConfig

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
ResponseStatus: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


@final
class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """What the model said."""

    text: str
    annotations: Sequence[Any] = ()
    logprobs: Sequence[Any] = ()


@final
class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    content: Sequence[OutputText]
    role: str = "assistant"


@final
class OutputCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function; its arguments are JSON as text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = OutputMessage | OutputCall


@final
class OutputTokensDetails(msgspec.Struct):
    """No model here has a reasoning of its own kind."""

    reasoning_tokens: int = 0


@final
class ResponseUsage(msgspec.Struct, kw_only=True):
    """What a response took, in tokens."""

    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


@final
class IncompleteDetails(msgspec.Struct):
    """Why a response stops in the middle."""

    reason: Literal["max_output_tokens"]


@final
class ResponseError(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


@final
class ResponseReply(msgspec.Struct, kw_only=True):
    """A response, as far as it has come, with what was asked."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    output: Sequence[OutputItem]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Mapping[str, str]
    parallel_tool_calls: bool
    temperature: float
    text: TextConfig
    tool_choice: FunctionChoices
    tools: Sequence[FunctionTool]
    top_p: float
    user: str | None
    object: str = "response"
    background: bool = False
    previous_response_id: None = None
    store: bool = False
    truncation: str = "disabled"


@final
class ResponseEvent(msgspec.Struct, kw_only=True):
    """Something that happens to a response; `type` tells which fields it has."""

    type: str
    sequence_number: int
    response: ResponseReply | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: Sequence[Any] | UnsetType = UNSET
