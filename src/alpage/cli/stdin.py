"""Stdin: text that comes through a pipe."""

import sys
from collections.abc import Iterator

from alpage.errors import InvalidValue


def read_text() -> str:
    """Return all of stdin, without the newline that ends it.

    Raises:
        InvalidValue: it is not UTF-8.
    """
    return _decoded(sys.stdin.buffer.read()).removesuffix("\n")


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin as they come, without their newlines.

    Raises:
        InvalidValue: one is not UTF-8.
    """
    for line in sys.stdin.buffer:
        yield _decoded(line).rstrip("\r\n")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(
            field="stdin",
            value=data[error.start : error.start + 8],
            limit=f"is not UTF-8 at byte {error.start}",
            remedy="Give text in UTF-8",
        ) from None
