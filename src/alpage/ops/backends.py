"""Backends: every way to compute attention over pages, the one to prefer first."""

from alpage.ops.attention import Backend
from alpage.ops.cpu import Native
from alpage.ops.reference import Reference
from alpage.ops.sdpa import Sdpa


def backends() -> tuple[Backend, ...]:
    """Return them all; each says of itself what it supports."""
    return (Native(), Sdpa(), Reference())
