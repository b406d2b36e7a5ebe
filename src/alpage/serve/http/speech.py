"""Speech: what one continuation of a chat says and calls, as it comes."""

import secrets
import string
from typing import Final, final

from alpage.serve.http.replies import CalledFunction, ToolCallReply
from alpage.serve.http.tool_calls import Call, ToolReader
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
    """

    def __init__(self, tooling: Tooling | None) -> None:
        self._reader = None if tooling is None else ToolReader(tooling.names)
        self._max_calls = 1 if tooling is not None and not tooling.is_parallel else None
        self._num_calls = 0

    def take(self, chunk: StreamChunk) -> tuple[str, list[ToolCallReply]]:
        """Return what comes to the text, and what is called."""
        if self._reader is None:
            return chunk.text, []
        found = self._reader.push(chunk.text)
        if chunk.finish_reason is not None:
            found += self._reader.finish()
        text = "".join(item for item in found if isinstance(item, str))
        num_left = None if self._max_calls is None else self._max_calls - self._num_calls
        calls = [item for item in found if isinstance(item, Call)][:num_left]
        return text, [self._reply(call) for call in calls]

    def finish_reason(self, chunk: StreamChunk) -> str | None:
        """Return why it has ended, if it has: with calls, unless it was cut."""
        is_call = self._num_calls > 0 and chunk.finish_reason == "stop"
        return "tool_calls" if is_call else chunk.finish_reason

    def _reply(self, call: Call) -> ToolCallReply:
        index, self._num_calls = self._num_calls, self._num_calls + 1
        name = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_NUM_ID_CHARACTERS))
        function = CalledFunction(call.name, call.arguments)
        return ToolCallReply(id=name, function=function, index=index)
