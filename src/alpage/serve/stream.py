"""Stream: the chunks of one request as they come."""

from collections import deque
from collections.abc import Iterator
from typing import final

from alpage.serve.outputs import RequestOutput, StreamChunk
from alpage.serve.request import Request
from alpage.serve.serves import Serves


@final
class Stream(Iterator[StreamChunk]):
    """An iterator over what a request's steps add. Closed or dropped early, it aborts the request.

    Args:
        engine: makes the steps; other calls may make some too.
        request: one that the engine has queued.
    """

    def __init__(self, engine: Serves, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._chunks: deque[StreamChunk] = deque()

    def __next__(self) -> StreamChunk:
        """Return the next chunk, making as many steps as it takes."""
        while not self._chunks:
            is_finished = self._request.is_finished
            self._chunks.extend(self._request.take_chunks())
            if not self._chunks:
                if is_finished:
                    raise StopIteration
                self._engine.step()
        return self._chunks.popleft()

    @property
    def output(self) -> RequestOutput | None:
        """All that came of the request, once it is finished."""
        return self._request.output() if self._request.is_finished else None

    def close(self) -> None:
        """End the request where it is, if it is not finished."""
        if not self._request.is_finished:
            self._engine.abort(self._request.request_id)

    def __del__(self) -> None:
        """Let the engine give back what nobody will read, when it can."""
        if not self._request.is_finished:
            self._engine.abandon(self._request.request_id)
