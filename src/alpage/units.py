"""Units: SI and binary constants, and sizes as text.

>>> parse_bytes("2GiB") == 2 * GiB
True
>>> format_bytes(3 * GiB // 2)
'1.5 GiB'
"""

import re

from alpage.errors import InvalidValue

KB, MB, GB = 10**3, 10**6, 10**9
KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": KB,
    "mb": MB,
    "gb": GB,
    "kib": KiB,
    "mib": MiB,
    "gib": GiB,
    "tib": TiB,
}
# Of so few digits that the number is finite.
_SIZE = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int, *, field: str = "size") -> int:
    """Return the bytes that a size such as "2GiB", "500 MB" or 1048576 names.

    Args:
        text: a number with a unit (B, kB, MB, GB, KiB, MiB, GiB, TiB), or a number of bytes.
        field: the name the error gives to the value.

    Raises:
        InvalidValue: the text is no size, or the size is not positive.

    >>> parse_bytes("64 MiB"), parse_bytes(4096)
    (67108864, 4096)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        num_bytes = text
    else:
        match = _SIZE.fullmatch(str(text))
        factor = _FACTORS.get(match[2].lower()) if match else None
        num_bytes = int(float(match[1]) * factor) if match and factor else 0
    if num_bytes <= 0:
        raise InvalidValue(
            field=field,
            value=text,
            limit="is not a positive size",
            remedy='Give a number with a unit, such as "2GiB" or "500MB"',
        )
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Return a size in the largest binary unit that keeps it at or above one.

    >>> format_bytes(1536), format_bytes(12)
    ('1.5 KiB', '12 B')
    """
    for unit, factor in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits or more, in the unit that people read it in.

    >>> format_seconds(0.0289325), format_seconds(85.2), format_seconds(4.9e-6)
    ('28.9 ms', '85.2 s', '4.90 us')
    """
    value, unit = next(
        (
            (seconds * factor, unit)
            for unit, factor in (("s", 1), ("ms", 1e3))
            if seconds * factor >= 1
        ),
        (seconds * 1e6, "us"),
    )
    return f"{value:,.{max(0, 3 - len(str(int(value))))}f} {unit}"
