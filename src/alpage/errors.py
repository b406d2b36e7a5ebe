"""Errors: the one tree of everything a user of alpage can do wrong or run into.

::

    AlpageError
    ├── InvalidValue      an argument, option or request field is out of its range
    ├── ModelNotFound     no model by that name or at that path
    ├── BadCheckpoint     a model's files are missing, truncated, corrupt or contradict each other
    ├── Unsupported       well formed, but nothing here can run it
    ├── OutOfMemory       the memory at hand cannot hold what was asked for
    └── RankLost          a process or thread of a mesh failed, died, or kept the others waiting

Every error names the field, the value that was refused, the limit it broke and a remedy.
Our own invariants are `assert`; they are never used for what a user passed in.
"""

from typing import ClassVar, final

_SHOWN_CHARACTERS = 120


class AlpageError(Exception):
    """Base of the tree.

    Args:
        field: what was refused: an argument's name, a file, a key of a file.
        value: what it was. Shown shortened where it is long.
        limit: what would have been accepted, as a sentence without its full stop.
        remedy: what to do about it, as a sentence without its full stop.
    """

    code: ClassVar[str] = "error"

    def __init__(self, *, field: str, value: object, limit: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.limit = limit
        self.remedy = remedy
        super().__init__(f"{field}={_shown(value)}: {limit}. {remedy}.")


@final
class InvalidValue(AlpageError, ValueError):
    """An argument, option or request field is out of its range."""

    code = "invalid_value"


@final
class ModelNotFound(AlpageError):
    """No model by that name or at that path."""

    code = "model_not_found"


@final
class BadCheckpoint(AlpageError):
    """A model's files are missing, truncated, corrupt or contradict each other."""

    code = "bad_checkpoint"


@final
class Unsupported(AlpageError):
    """Well formed, but nothing here can run it."""

    code = "unsupported"


@final
class OutOfMemory(AlpageError):
    """The memory at hand cannot hold what was asked for."""

    code = "out_of_memory"


@final
class RankLost(AlpageError):
    """A process or thread of a mesh failed, died, or kept the others waiting too long."""

    code = "rank_lost"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes out no whole number of more than some thousand digits.
        text = f"<{type(value).__name__}>"
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
