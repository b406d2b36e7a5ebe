"""Config: read numbers out of a Hugging Face config.json, with an error that names the bad one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from alpage.errors import BadCheckpoint, Unsupported

_MAX_SIZE = 2**31


@final
class ConfigReader:
    """Typed access to a config; every refusal is a `BadCheckpoint` or `Unsupported`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def size(self, name: str, *, default: int | None = None) -> int:
        """Return a positive whole number; a missing or null one is the default, if there is one."""
        value = self._config.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MAX_SIZE:
            raise self._bad(name, "must be a positive whole number")
        return value

    def size_or_none(self, name: str) -> int | None:
        """Return a positive whole number, or None where it is missing or null."""
        return None if self._config.get(name) is None else self.size(name)

    def number(self, name: str, default: float) -> float:
        """Return a positive number."""
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._bad(name, "must be a positive number")
        if not 0 < value < math.inf:
            raise self._bad(name, "must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false; missing is false."""
        value = self._config.get(name) or False
        if not isinstance(value, bool):
            raise self._bad(name, "must be true or false")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        """Return a mapping; missing or null is empty."""
        value = self._config.get(name) or {}
        if not isinstance(value, Mapping):
            raise self._bad(name, "must be a table")
        return value

    def must_be(self, name: str, choices: Sequence[str], *, default: str) -> None:
        """Refuse a value that this architecture's code does not compute."""
        value = self._config.get(name, default)
        if value not in choices:
            raise Unsupported(
                field=name,
                value=value,
                limit="must be one of " + ", ".join(choices),
                remedy="Use a checkpoint with one of these",
            )

    def must_divide(self, small_name: str, small: int, large_name: str, large: int) -> None:
        """Refuse sizes of which one must be a multiple of the other and is not."""
        if large % small:
            raise BadCheckpoint(
                field=large_name,
                value=large,
                limit=f"must be a multiple of {small_name}={small}",
                remedy="Mend the model's config.json",
            )

    def _bad(self, name: str, limit: str) -> BadCheckpoint:
        return BadCheckpoint(
            field=name,
            value=self._config.get(name),
            limit=limit,
            remedy="Mend the model's config.json",
        )
