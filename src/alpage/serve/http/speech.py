"""Speech: what one continuation of a chat says and calls, as it comes."""

import secrets
import string
from collections.abc import Iterator
from typing import Final, final

from alpage.serve.http.replies import (
    CalledFunction,
    CalledFunctionPart,
    ToolCallPart,
    ToolCallReply,
)
from alpage.serve.http.tool_calls import Call, Found, More, ToolReader
from alpage.serve.http.tools import Tooling
from alpage.serve.outputs import StreamChunk

# The most that every model's template takes.
_ID_CHARACTERS: Final = string.ascii_letters + string.digits
_NUM_ID_CHARACTERS: Final = 9


@final
class Speech:
    """One continuation.

    Args:
        tooling: the tools that may be called; None: all is text.
        is_held: whether it is held to a form in which calls that have begun are calls to the end.

    Attributes:
        calls: as far as they have come.
    """

    def __init__(self, tooling: Tooling | None, *, is_held: bool) -> None:
        self.calls: list[ToolCallReply] = []
        self._reader = None if tooling is None else ToolReader(tooling.names, is_held=is_held)
        self._max_calls = 1 if tooling is not None and not tooling.is_parallel else None
        # Whether the call that is being read is one too many.
        self._is_extra = False

    def take(self, chunk: StreamChunk) -> list[str | ToolCallPart]:
        """Return what comes to the text, and to calls, in their order."""
        if self._reader is None:
            return [chunk.text] if chunk.text else []
        found = self._reader.push(chunk.text)
        if chunk.finish_reason is not None:
            found += self._reader.finish()
        return [part for item in found for part in self._parts(item)]

    def finish_reason(self, chunk: StreamChunk) -> str | None:
        """Return why it has ended, if it has: with calls, unless it was cut."""
        is_call = bool(self.calls) and chunk.finish_reason == "stop"
        return "tool_calls" if is_call else chunk.finish_reason

    def _parts(self, item: Found) -> Iterator[str | ToolCallPart]:
        match item:
            case str():
                yield item
            case Call():
                self._is_extra = len(self.calls) == self._max_calls
                if not self._is_extra:
                    yield self._begin(item)
            case More(arguments) if not self._is_extra:
                self.calls[-1].function.arguments += arguments
                function = CalledFunctionPart(arguments=arguments)
                yield ToolCallPart(index=len(self.calls) - 1, function=function)

    def _begin(self, call: Call) -> ToolCallPart:
        name = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_NUM_ID_CHARACTERS))
        reply = ToolCallReply(id=name, function=CalledFunction(call.name, call.arguments))
        self.calls.append(reply)
        return ToolCallPart(
            index=len(self.calls) - 1,
            id=name,
            type=reply.type,
            function=CalledFunctionPart(name=call.name, arguments=call.arguments),
        )
