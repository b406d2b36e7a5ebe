"""Target: a server with OpenAI's interface, asked for one streamed completion or chat at a time."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, TypeAlias, final

import aiohttp
import msgspec

from alpage.errors import InvalidValue
from alpage.load.outcome import Outcome
from alpage.workload_file import RequestSpec

Body: TypeAlias = Mapping[str, Any]
Endpoint: TypeAlias = Literal["completions", "chat"]

_DATA = b"data:"
_END = b"[DONE]"
_MAX_KIND_CHARACTERS = 60


@final
class _Delta(msgspec.Struct):
    content: str | None = None
    # Of models that think aloud, as some servers have it.
    reasoning_content: str | None = None


@final
class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    @property
    def brings_something(self) -> bool:
        """Whether it is more than a sign of life."""
        said = self.delta is not None and (self.delta.content or self.delta.reasoning_content)
        return bool(self.text or said or self.token_ids)


@final
class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


@final
class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str = ""


@final
class _Part(msgspec.Struct):
    """What is of interest in an event of a stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decode_part = msgspec.json.Decoder(_Part).decode


@final
class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


def to_body(
    spec: RequestSpec, prompt: str | list[int], extra: Body, endpoint: Endpoint = "completions"
) -> Body:
    """Return what is asked for by a workload's request.

    Args:
        spec: the request.
        prompt: text or token ids.
        extra: fields that are added, or replace those that are here.
        endpoint: chat: the prompt is what a user says.

    Raises:
        InvalidValue: a chat cannot have token ids.
    """
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": spec.output_tokens}
    if endpoint == "chat":
        if not isinstance(prompt, str):
            raise InvalidValue(
                field="workload",
                value=prompt,
                limit="has a prompt of token ids, and what is said in a chat is a text",
                remedy="Give texts or numbers of tokens, or --endpoint completions",
            )
        del body["prompt"]
        body["messages"] = [{"role": "user", "content": prompt}]
    if spec.beam_width is not None:
        body |= {"n": spec.beam_width, "use_beam_search": True}
    else:
        body |= {"n": spec.n, "temperature": 0.0 if spec.n == 1 else 1.0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    # A field that is null is one that a server without it should not see.
    fields = body | streamed | dict(extra)
    return {name: value for name, value in fields.items() if value is not None}


@final
class Target:
    """A server; `async with` opens the connections to it.

    Args:
        url: of the server, with or without /v1.
        model: what it calls the model; None: the first that it lists.
        api_key: what it asks for.
        timeout_s: seconds that a request may take, from its sending.

    Raises:
        InvalidValue: the address is none, or the key cannot be sent.
    """

    def __init__(
        self, url: str, *, model: str | None, api_key: str | None, timeout_s: float
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        if not self.url.startswith(("http://", "https://")):
            raise self._unreachable("it is no http:// or https:// address")
        if api_key is not None and not api_key.isprintable():
            raise InvalidValue(
                field="api_key",
                value="(not shown)",
                limit="must be one line of printable characters",
                remedy="Give it as the server knows it",
            )
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Target":
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=self._timeout_s),
            trust_env=True,
        )
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._open.close()

    @property
    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "a target is used inside of `async with`"
        return self._session

    async def check(self) -> str:
        """Return what the server calls its model.

        Raises:
            InvalidValue: it cannot be reached, refuses, or lists no model.
        """
        if self._model is None:
            try:
                async with self._open.get(f"{self.url}/v1/models") as answer:
                    data = await answer.read()
                if answer.status != HTTPStatus.OK:
                    raise self._unreachable(f"answers {answer.status}")
                models = msgspec.json.decode(data, type=_Models)
                self._model = str(models.data[0]["id"])
            except (aiohttp.ClientError, TimeoutError) as error:
                raise self._unreachable(str(error) or type(error).__name__) from None
            except (msgspec.DecodeError, IndexError, KeyError):
                raise self._unreachable("lists no models as OpenAI does") from None
        return self._model

    async def send(self, body: Body, arrival_s: float, start_s: float) -> Outcome:
        """Send a request now, and return what came of it.

        Args:
            body: its fields, but for the model.
            arrival_s: when it was to be sent, after the start.
            start_s: the start, by `time.perf_counter`.
        """
        reading = _Reading(start_s)
        sent_s = time.perf_counter() - start_s
        try:
            request = {"model": self._model, **body}
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            async with self._open.post(self.url + path, json=request) as answer:
                if answer.status == HTTPStatus.OK:
                    await reading.read(answer)
                else:
                    reading.failure = f"HTTP {answer.status}{_code_of(await answer.read())}"
        except TimeoutError:
            reading.failure = f"no answer within {self._timeout_s:g} s"
        except aiohttp.ClientConnectorError:
            reading.failure = "no connection"
        except aiohttp.ClientError as error:
            reading.failure = f"connection lost: {type(error).__name__}"
        return Outcome(
            arrival_s=arrival_s,
            sent_s=sent_s,
            ended_s=time.perf_counter() - start_s,
            part_times_s=[reading.times_s[index] for index in sorted(reading.times_s)],
            prompt_tokens=reading.usage.prompt_tokens,
            output_tokens=reading.usage.completion_tokens or reading.num_parts,
            failure=reading.failure,
        )

    def _unreachable(self, why: str) -> InvalidValue:
        return InvalidValue(
            field="target",
            value=self.url,
            limit=f"cannot be used: {why}",
            remedy="Give the address of a server with OpenAI's interface, such as "
            "http://127.0.0.1:8000, and --api-key if it wants one",
        )


@final
class _Reading:
    """A stream of events as it comes."""

    def __init__(self, start_s: float) -> None:
        self.times_s: dict[int, list[float]] = {}
        self.usage = _Usage()
        self.failure: str | None = None
        self._start_s = start_s
        self._has_ended = False

    @property
    def num_parts(self) -> int:
        """Parts that brought something."""
        return sum(map(len, self.times_s.values()))

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """Read to the end of the stream, and note when what came."""
        rest = b""
        async for data in answer.content.iter_any():
            # All that came at once, came now.
            now_s = time.perf_counter() - self._start_s
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(_DATA):
                    self._note(line.removeprefix(_DATA).strip(), now_s)
        if not self._has_ended and self.failure is None:
            self.failure = "stream cut off"

    def _note(self, data: bytes, now_s: float) -> None:
        if data == _END:
            self._has_ended = True
            return
        try:
            part = _decode_part(data)
        except msgspec.DecodeError:
            self.failure = "unreadable part of a stream"
            return
        if part.error is not None:
            kind = part.error.code or part.error.type or part.error.message
            self.failure = f"failed in its stream: {kind}"[:_MAX_KIND_CHARACTERS]
        if part.usage is not None:
            self.usage = part.usage
        for choice in part.choices:
            if choice.brings_something:
                self.times_s.setdefault(choice.index, []).append(now_s)


def _code_of(data: bytes) -> str:
    """Return the code of an error's body, behind a blank, if it has one."""
    try:
        error = _decode_part(data).error
    except msgspec.DecodeError:
        return ""
    kind = None if error is None else error.code or error.type
    return "" if kind is None else f" {kind}"[:_MAX_KIND_CHARACTERS]
