"""Model shape: the sizes of whatever model a command names, without its weights."""

import json
from pathlib import Path
from typing import Any

from alpage.errors import BadCheckpoint
from alpage.shapes import SHAPES, named_shape
from alpage.units import MiB
from alpage.workload import ModelShape

_MAX_CONFIG_BYTES = 16 * MiB


def model_shape(model: str) -> ModelShape:
    """Return a model's sizes.

    Args:
        model: a name whose sizes are known; the path of a config.json, of a directory that has one,
            or of a .gguf file; or a short name of the catalogue.

    Raises:
        ModelNotFound: it is none of these, or a short name that was not pulled.
        BadCheckpoint: the file is corrupt.
        Unsupported: no file here computes this architecture.
    """
    if model in SHAPES:
        return named_shape(model)
    from alpage.models import build, catalogue, open_checkpoint, resolve

    if model not in catalogue.CATALOGUE and not _is_there(model):
        return named_shape(model)  # Its refusal lists the names.
    path = resolve(model)
    if path.is_dir():
        path /= "config.json"
    # What a config amounts to, only a model's file knows, and that needs PyTorch.
    config = _read(path) if path.suffix == ".json" else open_checkpoint(path).config
    return build(config)[0].shape


def _is_there(model: str) -> bool:
    try:
        return Path(model).expanduser().exists()
    except (OSError, RuntimeError):
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_MAX_CONFIG_BYTES))
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise _bad(path, f"holds a {type(config).__name__} and must hold an object")
    return config


def _bad(path: Path, limit: str) -> BadCheckpoint:
    return BadCheckpoint(
        field="model",
        value=str(path),
        limit=limit,
        remedy="Give the model's own config.json, whole",
    )
