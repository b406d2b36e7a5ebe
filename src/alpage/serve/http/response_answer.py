"""Response answer: items, one after the other, and events that tell how each comes to be."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

import msgspec
from msgspec import UNSET, Struct

from alpage.serve.http.answers import Answer
from alpage.serve.http.engine_messages import Ask, Piece
from alpage.serve.http.replies import ToolCallPart
from alpage.serve.http.response_replies import (
    IncompleteDetails,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    ResponseError,
    ResponseEvent,
    ResponseReply,
    ResponseStatus,
    ResponseUsage,
)
from alpage.serve.http.response_schema import ResponseRequest, TextConfig, TextFormat
from alpage.serve.http.schema import ChatRequest
from alpage.serve.http.speech import Speech
from alpage.serve.http.tools import Tooling
from alpage.serve.outputs import RequestOutput

_LOST_FORM: Final = "The text could not be held to its form any further."


@final
class ResponseAnswer(Answer):
    """What is told of a response.

    Args:
        model: what the model is called.
        asked: the request.
        chat: the same as a chat.
        asks: the conversation, as the engine got it.
        tooling: the tools that may be called.
    """

    def __init__(
        self,
        model: str,
        asked: ResponseRequest,
        chat: ChatRequest,
        asks: Sequence[Ask],
        tooling: Tooling | None,
    ) -> None:
        super().__init__("resp_", model, chat, asks)
        self._asked = asked
        self._speech = Speech(tooling, is_held=any(ask.has_form for ask in asks))
        self._status: ResponseStatus = "in_progress"
        self._items: list[OutputItem] = []
        # Of the message that is being said; None: there is none.
        self._message_id: str | None = None
        self._said = ""
        # The call that is being made; None: there is none.
        self._call: OutputCall | None = None
        self._num_events = 0

    def whole(self, outputs: Sequence[RequestOutput]) -> ResponseReply:
        """Return the response."""
        for piece in self.pieces(outputs):
            for _ in self.parts(piece):
                pass
        return self._reply()

    def begin(self) -> Iterator[ResponseEvent]:
        """Yield that there is a response, and that it is being made."""
        yield self._event("response.created", response=self._reply())
        yield self._event("response.in_progress", response=self._reply())

    def parts(self, piece: Piece) -> Iterator[ResponseEvent]:
        """Yield the items as they come, and at the end the whole."""
        self.count(piece)
        for chunk in piece.chunks:
            for item in self._speech.take(chunk):
                if isinstance(item, str):
                    yield from self._end_call("completed")
                    yield from self._say(item)
                else:
                    yield from self._end_message("completed")
                    yield from self._call_on(item)
            if chunk.finish_reason is not None:
                if not self._items and self._message_id is None and self._call is None:
                    yield from self._open_message()
                is_whole = chunk.finish_reason == "stop"
                status: ItemStatus = "completed" if is_whole else "incomplete"
                yield from self._end_message(status)
                yield from self._end_call(status)
                self._status = _STATUSES.get(chunk.finish_reason, "failed")
                yield self._event(f"response.{self._status}", response=self._reply())

    def event_name(self, part: Struct) -> str:
        """Return what kind of event it is."""
        assert isinstance(part, ResponseEvent)
        return part.type

    def _open_message(self) -> Iterator[ResponseEvent]:
        self._message_id, self._said = _name("msg_"), ""
        yield self._event(
            "response.output_item.added",
            output_index=len(self._items),
            item=OutputMessage(id=self._message_id, status="in_progress", content=()),
        )
        yield self._of_text("response.content_part.added", part=OutputText(text=""))

    def _say(self, text: str) -> Iterator[ResponseEvent]:
        if self._message_id is None:
            yield from self._open_message()
        self._said += text
        yield self._of_text("response.output_text.delta", delta=text, logprobs=())

    def _end_message(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        if self._message_id is None:
            return
        part = OutputText(text=self._said)
        yield self._of_text("response.output_text.done", text=self._said, logprobs=())
        yield self._of_text("response.content_part.done", part=part)
        item = OutputMessage(id=self._message_id, status=status, content=(part,))
        self._message_id = None
        yield self._end_item(item)

    def _call_on(self, part: ToolCallPart) -> Iterator[ResponseEvent]:
        if part.id is not UNSET:
            yield from self._end_call("completed")
            call = self._speech.calls[part.index]
            self._call = OutputCall(
                id=_name("fc_"),
                status="in_progress",
                call_id=call.id,
                name=call.function.name,
                arguments="",
            )
            place = len(self._items)
            yield self._event("response.output_item.added", output_index=place, item=self._call)
        if part.function.arguments:
            kind = "response.function_call_arguments.delta"
            yield self._of_call(kind, delta=part.function.arguments)

    def _end_call(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        if self._call is None:
            return
        call = self._call
        arguments = next(
            each.function.arguments for each in self._speech.calls if each.id == call.call_id
        )
        kind = "response.function_call_arguments.done"
        yield self._of_call(kind, name=call.name, arguments=arguments)
        self._call = None
        yield self._end_item(msgspec.structs.replace(call, status=status, arguments=arguments))

    def _of_call(self, kind: str, **fields: Any) -> ResponseEvent:
        assert self._call is not None, "there is a call"
        return self._event(kind, item_id=self._call.id, output_index=len(self._items), **fields)

    def _end_item(self, item: OutputItem) -> ResponseEvent:
        self._items.append(item)
        place = len(self._items) - 1
        return self._event("response.output_item.done", output_index=place, item=item)

    def _of_text(self, kind: str, **fields: Any) -> ResponseEvent:
        assert self._message_id is not None, "there is a message"
        return self._event(
            kind,
            item_id=self._message_id,
            output_index=len(self._items),
            content_index=0,
            **fields,
        )

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        number, self._num_events = self._num_events, self._num_events + 1
        return ResponseEvent(type=kind, sequence_number=number, **fields)

    def _reply(self) -> ResponseReply:
        asked, status = self._asked, self._status
        text_format = None if asked.text is None else asked.text.format
        return ResponseReply(
            id=self.id,
            created_at=self.created,
            model=self.model,
            status=status,
            output=tuple(self._items),
            usage=None if status == "in_progress" else self._usage(),
            error=ResponseError("server_error", _LOST_FORM) if status == "failed" else None,
            incomplete_details=(
                IncompleteDetails("max_output_tokens") if status == "incomplete" else None
            ),
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            text=TextConfig(text_format or TextFormat("text")),
            tool_choice="auto" if asked.tool_choice is None else asked.tool_choice,
            tools=asked.tools or (),
            top_p=1.0 if asked.top_p is None else asked.top_p,
            user=asked.user,
        )

    def _usage(self) -> ResponseUsage:
        usage = self.usage
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=usage.prompt_tokens_details,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=usage.total_tokens,
        )


_STATUSES: Final[dict[str, ResponseStatus]] = {"stop": "completed", "length": "incomplete"}


def _name(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
