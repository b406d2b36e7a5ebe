"""Loading: from a command's options to a model that is ready."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpage.cli.terminal import working
from alpage.models import resolve
from alpage.serve.loading import without_collections
from alpage.units import parse_bytes

if TYPE_CHECKING:
    from alpage.models import Checkpoint
    from alpage.serve import LLM
    from alpage.serve.http import EngineProcess


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
    path, known = _checked(model, kv_memory, seed)
    with working(f"loading {model}") as notify, without_collections():
        from alpage.serve import LLM

        return LLM(path, notify=notify, **known, **options)


def start_engine(
    model: str, *, kv_memory: str | None, seed: int | None = None, **options: Any
) -> "tuple[EngineProcess, Checkpoint]":
    """Return a model in a process of its own, and its files here; see `load_llm`.

    Raises:
        AlpageError: as there.
    """
    path, known = _checked(model, kv_memory, seed)
    with working(f"loading {model}") as notify, without_collections():
        from alpage.serve.http import EngineProcess

        process = EngineProcess(str(path), **known, **options)
        # This process imports PyTorch while that one does.
        from alpage.models import open_checkpoint

        process.wait(notify)
        return process, open_checkpoint(path)


def _checked(model: str, kv_memory: str | None, seed: int | None) -> tuple[Path, dict[str, Any]]:
    """Refuse at once what can be refused without PyTorch."""
    path = resolve(model)
    return path, {
        "kv_memory": None if kv_memory is None else parse_bytes(kv_memory, field="kv_memory"),
        "seed": secrets.randbelow(2**32) if seed is None else seed,
    }
