"""Allocation: memory that is not there, told as an error that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from alpage.errors import OutOfMemory

# How PyTorch's CPU allocator, its CUDA allocator, the CUDA driver and cuBLAS say it; NumPy and
# Python raise MemoryError.
_SAYS_SO = re.compile(r"not enough memory|can't allocate memory|out of memory|ALLOC_FAILED")


@contextmanager
def allocating(*, field: str, value: object, limit: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation within into an `OutOfMemory` of these words.

    Raises:
        OutOfMemory: there was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _SAYS_SO.search(str(error)):
            raise
        raise OutOfMemory(field=field, value=value, limit=limit, remedy=remedy) from error
