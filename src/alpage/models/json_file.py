"""JSON files: read an object from a file of bounded size."""

import json
from pathlib import Path
from typing import Any

from alpage.errors import BadCheckpoint
from alpage.units import MiB, format_bytes

_MAX_BYTES = 256 * MiB


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        BadCheckpoint: the file is missing, too large, no JSON, or holds something else.
    """
    value = _parse(path, read_text(path))
    if not isinstance(value, dict):
        raise _bad(path, f"holds a {type(value).__name__} and must hold an object")
    return value


def read_object_or_empty(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, or an empty one where there is no such file.

    Raises:
        BadCheckpoint: as `read_object`, except for a missing file.
    """
    return read_object(path) if path.exists() else {}


def read_text(path: Path) -> str:
    """Return the text of a file of bounded size.

    Raises:
        BadCheckpoint: the file is missing, too large or not UTF-8.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MAX_BYTES:
            raise _bad(path, f"is {format_bytes(num_bytes)}, above {format_bytes(_MAX_BYTES)}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _bad(path, f"is not UTF-8 text: {error}") from error


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"is not valid JSON: {error}") from error


def _bad(path: Path, limit: str) -> BadCheckpoint:
    return BadCheckpoint(
        field=path.name,
        value=str(path),
        limit=limit,
        remedy="Get the model's files again, whole",
    )
