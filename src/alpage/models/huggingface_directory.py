"""Hugging Face directories: a model's config and safetensors, read without running its code.

Python files and `auto_map` in such a directory are ignored; pickled weights are refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from alpage.errors import AlpageError, BadCheckpoint, ModelNotFound, Unsupported
from alpage.models.json_file import read_object, read_object_or_empty

_FLOATS: Final = ("BF16", "F16", "F32")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsTensor:
    """A tensor in a safetensors file that is mapped into memory."""

    name: str
    shape: tuple[int, ...]
    dtype_name: str
    file: Path
    opened: Any

    def load(self) -> Tensor:
        """Return the tensor in its own dtype, as a private view of the file.

        Raises:
            Unsupported: it is not BF16, F16 or F32.
            BadCheckpoint: the file cannot be read.
        """
        if self.dtype_name not in _FLOATS:
            raise Unsupported(
                field=f"{self.file.name}: {self.name}",
                value=self.dtype_name,
                limit=f"weights must be stored as one of {', '.join(_FLOATS)}",
                remedy="Use a checkpoint that is not quantised",
            )
        try:
            tensor: Tensor = self.opened.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise _bad(self.file, self.name, f"cannot be read: {error}") from error
        return tensor

    def int4(self) -> None:
        """Return None: it is of floats."""


def read_config(directory: Path) -> dict[str, Any]:
    """Return a model's config.json.

    Raises:
        ModelNotFound: the directory holds no config.json.
        BadCheckpoint: config.json is corrupt.
        Unsupported: it says that the weights are quantised.
    """
    if not (directory / "config.json").exists():
        raise _no_model(directory)
    config = read_object(directory / "config.json")
    if config.get("quantization_config"):
        raise Unsupported(
            field="config.json: quantization_config",
            value=config["quantization_config"],
            limit="quantised safetensors are not read",
            remedy="Use the model's bf16 safetensors, or a .gguf file of it",
        )
    return config


def read_eos_ids(directory: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids that end a generation by generation_config.json and by config.json.

    Raises:
        BadCheckpoint: `eos_token_id` is neither a token id nor a list of them.
    """
    generation = read_object_or_empty(directory / "generation_config.json")
    return _ids(directory / "generation_config.json", generation) | _ids(
        directory / "config.json", config
    )


def read_tensors(directory: Path) -> dict[str, SafetensorsTensor]:
    """Return the tensors of model.safetensors, or of the shards that its index names.

    Raises:
        BadCheckpoint: a file is missing, truncated or corrupt, or the index contradicts a shard.
        Unsupported: the weights are there as pickles only.
    """
    if (directory / _SINGLE).exists():
        return _read_file(directory / _SINGLE)
    if not (directory / _INDEX).exists():
        raise _no_weights(directory)
    shard_of = _read_index(directory / _INDEX)
    shards = {name: _read_file(directory / name) for name in sorted(set(shard_of.values()))}
    for tensor, shard in shard_of.items():
        if tensor not in shards[shard]:
            raise _bad(directory / shard, tensor, f"is not in the file, though {_INDEX} says so")
    return {tensor: shards[shard][tensor] for tensor, shard in shard_of.items()}


def _read_file(path: Path) -> dict[str, SafetensorsTensor]:
    try:
        # Not used as a context manager: the mapping must live as long as its tensors.
        opened: Any = safe_open(str(path), framework="pt", device="cpu")
        tensors = {}
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            part = opened.get_slice(name)
            tensors[name] = SafetensorsTensor(
                name=name,
                shape=tuple(part.get_shape()),
                dtype_name=part.get_dtype(),
                file=path,
                opened=opened,
            )
    except FileNotFoundError as error:
        raise _bad(path, None, "is missing, or may not be read") from error
    except (SafetensorError, OSError) as error:
        raise _bad(path, None, f"is truncated or corrupt: {error}") from error
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    shard_of = read_object(path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise _bad(path, "weight_map", "must be a table of tensors and their files")
    for tensor, shard in shard_of.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise _bad(path, tensor, f"lies in {shard!r}, which is no .safetensors file beside it")
    return shard_of


def _is_plain_name(shard: str) -> bool:
    is_beside = PurePosixPath(shard).name == shard and "\\" not in shard and "\0" not in shard
    return is_beside and shard.endswith(".safetensors")


def _ids(path: Path, config: Mapping[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise _bad(path, "eos_token_id", f"is {value!r} and must be a token id or a list of them")
    return frozenset(ids)


def _bad(path: Path, tensor: str | None, limit: str) -> BadCheckpoint:
    return BadCheckpoint(
        field=path.name if tensor is None else f"{path.name}: {tensor}",
        value=str(path),
        limit=limit,
        remedy="Get the model's files again, whole",
    )


def _no_model(directory: Path) -> ModelNotFound:
    ggufs = _names(directory, ("*.gguf",))
    return ModelNotFound(
        field="model",
        value=str(directory),
        limit="the directory holds no config.json",
        remedy=f"Give the file itself, {directory / ggufs[0]}"
        if ggufs
        else "Give a directory with config.json and safetensors, or a .gguf file",
    )


def _no_weights(directory: Path) -> AlpageError:
    pickles = _names(directory, _PICKLES)
    if pickles:
        return Unsupported(
            field="model",
            value=str(directory / pickles[0]),
            limit="is a pickle, which could run code when it is opened, and is never read",
            remedy="Convert the weights to model.safetensors",
        )
    return BadCheckpoint(
        field="model",
        value=str(directory),
        limit=f"the directory holds neither {_SINGLE} nor {_INDEX}",
        remedy="Get the model's files again, whole",
    )


def _names(directory: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(path.name for pattern in patterns for path in directory.glob(pattern))
