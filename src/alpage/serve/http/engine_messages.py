"""Engine messages: what a service tells its engine, and what it hears of it.

Within one process they are passed as they are; between two they are MessagePack. A ticket is the
number of one HTTP request's prompts, a question that of something asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from alpage.errors import (
    AlpageError,
    BadCheckpoint,
    InvalidValue,
    ModelNotFound,
    OutOfMemory,
    RankLost,
    Unsupported,
)
from alpage.serve.guide import Guide
from alpage.serve.http.refusals import PlainRefusal
from alpage.serve.http.reports import Report
from alpage.serve.intake import Limits
from alpage.serve.live import Snapshot
from alpage.serve.outputs import RequestOutput, StreamChunk, TokenLogprobs
from alpage.serve.params import BeamSearchParams, SamplingParams

_ERRORS: Final[Mapping[str, type[AlpageError]]] = {
    error.code: error
    for error in (InvalidValue, ModelNotFound, BadCheckpoint, Unsupported, OutOfMemory, RankLost)
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt, and how to go on from it: by one of the two; see `Serves.add`."""

    prompt_tokens: Sequence[int]
    sampling: SamplingParams | None = None
    beam: BeamSearchParams | None = None
    prompt: str | None = None
    priority: int = 0
    salt: str = ""

    @property
    def params(self) -> SamplingParams | BeamSearchParams:
        """How to go on."""
        params = self.sampling or self.beam
        assert params is not None
        return params

    @property
    def has_form(self) -> bool:
        """Whether what comes is held to a form."""
        return self.sampling is not None and self.sampling.guide is not None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a step added to one prompt.

    Attributes:
        number: of the prompt among the request's.
        chunks: what came, if the request is streamed.
        prompt_logprobs: with the first chunks, if asked for.
        output: with the last: all that came.
    """

    number: int
    chunks: Sequence[StreamChunk] = ()
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    output: RequestOutput | None = None


# -- to the engine ---------------------------------------------------------------------------------


@final
class Begin(msgspec.Struct, frozen=True):
    """The first message to a process: what it serves; the options are those of `EngineConfig`."""

    model: str
    options: dict[str, Any]


@final
class Take(msgspec.Struct, tag="take", array_like=True, frozen=True):
    """Go on from all of these prompts, or from none."""

    ticket: int
    asks: Sequence[Ask]
    is_streamed: bool


@final
class Drop(msgspec.Struct, tag="drop", array_like=True, frozen=True):
    """Nobody waits any more for what is left of a ticket."""

    ticket: int


@final
class Look(msgspec.Struct, tag="look", array_like=True, frozen=True):
    """Say how it goes: as numbers, as the moment that it is, or as one a little ago."""

    question: int
    what: Literal["report", "moment", "glance"]


@final
class Check(msgspec.Struct, tag="check", array_like=True, frozen=True):
    """Say whether a form can be followed, and have it ready; None: only what forms need."""

    question: int
    guide: Guide | None


Command: TypeAlias = Take | Drop | Look | Check


# -- from the engine -------------------------------------------------------------------------------


@final
class Accepted(msgspec.Struct, tag="accepted", array_like=True, frozen=True):
    """The engine has all prompts of a ticket."""

    ticket: int


@final
class News(msgspec.Struct, tag="news", array_like=True, frozen=True):
    """What a step added, by ticket."""

    pieces: Mapping[int, Sequence[Piece]]


@final
class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """Nothing more comes of a ticket."""

    ticket: int
    refusal: PlainRefusal


@final
class Told(msgspec.Struct, tag="told", array_like=True, frozen=True):
    """The answer to a question, or why there is none."""

    question: int
    report: Report | None = None
    moment: Snapshot | None = None
    refusal: PlainRefusal | None = None


@final
class Beat(msgspec.Struct, tag="beat", array_like=True, frozen=True):
    """Steps are made, even if nothing is news."""


@final
class Note(msgspec.Struct, tag="note", array_like=True, frozen=True):
    """A line for the user, while a process loads its model."""

    line: str


@final
class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """A process has its engine, and listens."""

    limits: Limits
    report: Report


@final
class Broken(msgspec.Struct, tag="broken", array_like=True, frozen=True):
    """A process has no engine: what a user can do about it."""

    code: str
    field: str
    value: str | int | float
    limit: str
    remedy: str

    @staticmethod
    def of(error: AlpageError) -> "Broken":
        """Return the message for an error."""
        value = error.value if isinstance(error.value, str | int | float) else str(error.value)
        return Broken(error.code, error.field, value, error.limit, error.remedy)

    @property
    def error(self) -> AlpageError:
        """The error once more."""
        kind = _ERRORS.get(self.code, AlpageError)
        return kind(field=self.field, value=self.value, limit=self.limit, remedy=self.remedy)


@final
class Down(msgspec.Struct, tag="down", array_like=True, frozen=True):
    """The engine is gone with all that it had, and is going to be `Ready` again."""


@final
class Lost(msgspec.Struct, tag="lost", array_like=True, frozen=True):
    """The engine is gone for good."""


Event: TypeAlias = Accepted | News | Failed | Told | Beat | Note | Ready | Broken | Down | Lost


# -- as bytes --------------------------------------------------------------------------------------


def _plain(value: Any) -> bytes:
    assert isinstance(value, np.ndarray), type(value)
    return value.astype("<i8").tobytes()


def _cells(_kind: type, data: Any) -> NDArray[np.int64]:
    # The one kind of array that is sent: a snapshot's, of four columns.
    return np.frombuffer(data, "<i8").reshape(-1, 4)


encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
decode_begin = msgspec.msgpack.Decoder(Begin).decode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_event = msgspec.msgpack.Decoder(Event, dec_hook=_cells).decode
