"""Loading: what is there to stay, without the garbage collector looking for garbage in it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Suspend the garbage collector.

    Imports and weights are there to stay: looking for garbage among them takes 0.2 s and finds
    none.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
