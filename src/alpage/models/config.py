"""Config: read numbers out of a Hugging Face config.json, with an error that names the bad one."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, final

from alpage.errors import BadCheckpoint, Unsupported

# So small that a weight of three sizes multiplied, such as all heads' projections, has a size in
# bytes; and so few layers that a model without weights is built within a second.
_MAX_SIZE = 2**19
MAX_LAYERS = 1024
MAX_POSITIONS = 2**31 - 1


@final
class ConfigReader:
    """Typed access to a config; every refusal is a `BadCheckpoint` or `Unsupported`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def size(self, name: str, *, default: int | None = None, at_most: int = _MAX_SIZE) -> int:
        """Return a positive whole number; a missing or null one is the default, if there is one."""
        value = self._config.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= at_most:
            raise self._bad(name, f"must be a whole number from 1 to {at_most}")
        return value

    def size_or_none(self, name: str, *, at_most: int = _MAX_SIZE) -> int | None:
        """Return a positive whole number, or None where it is missing or null."""
        return None if self._config.get(name) is None else self.size(name, at_most=at_most)

    def number(self, name: str, default: float) -> float:
        """Return a positive number."""
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._bad(name, "must be a positive number")
        if not 0 < value <= sys.float_info.max:
            raise self._bad(name, "must be a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return true or false; missing or null is the default."""
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(name, "must be true or false")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        """Return a mapping; missing or null is empty."""
        value = self._config.get(name) or {}
        if not isinstance(value, Mapping):
            raise self._bad(name, "must be a table")
        return value

    def must_be(self, name: str, choices: Sequence[str | bool], *, default: str | bool) -> None:
        """Refuse a value that this architecture's code does not compute."""
        value = self._config.get(name, default)
        if value not in choices:
            raise Unsupported(
                field=name,
                value=value,
                limit="must be " + " or ".join(str(choice) for choice in choices),
                remedy="Use a checkpoint in which it is",
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
