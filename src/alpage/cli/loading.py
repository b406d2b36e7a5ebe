"""Loading: from a command's options to a model that is ready."""

import gc
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alpage.cli.terminal import working
from alpage.models import resolve
from alpage.units import parse_bytes

if TYPE_CHECKING:
    from alpage.serve import LLM


def load_llm(
    model: str, *, kv_memory: str | None, seed: int | None = None, **options: Any
) -> "LLM":
    """Return a model, showing on a terminal that it is being loaded.

    Args:
        model: a short name or a path.
        kv_memory: see `EngineConfig`.
        seed: of the seeds of requests that bring none; None draws one.
        **options: dtype, device, devices, replicas and layout, see `EngineConfig`.

    Raises:
        AlpageError: the model cannot be found, read or held, or an option is out of range.
    """
    # What can be refused without PyTorch is refused at once.
    path = resolve(model)
    kv_bytes = None if kv_memory is None else parse_bytes(kv_memory, field="kv_memory")
    with working(f"loading {model}") as notify, without_collections():
        from alpage.serve import LLM

        return LLM(
            path,
            notify=notify,
            kv_memory=kv_bytes,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            **options,
        )


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
