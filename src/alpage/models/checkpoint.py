"""Checkpoint: the value every model is loaded from, whatever its files look like.

Two forms are read: a directory as Hugging Face writes it (config.json, safetensors,
tokenizer.json) and a GGUF file. Both come out the same: a Hugging Face config, tensors under
Hugging Face names that stay on disk until they are loaded, and a tokenizer that is built when
it is first asked for. Nothing in a model's files is ever executed or unpickled.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from torch import Tensor

from alpage.errors import ModelNotFound, OutOfMemory, Unsupported
from alpage.models.gguf_file import read_gguf
from alpage.models.gguf_model import GgufModel
from alpage.models.gguf_tokenizer import build_tokenizer
from alpage.models.huggingface_directory import read_config, read_eos_ids, read_tensors
from alpage.models.quantize import Int4Matrix
from alpage.models.stamp import stamp
from alpage.models.tokenizer import Tokenizer
from alpage.models.tokenizer_files import read_tokenizer

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class StoredTensor(Protocol):
    """A tensor that is still in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype_name(self) -> str:
        """How it is stored: BF16, F32, Q4_1 and so on."""

    def load(self) -> Tensor:
        """Read it: floats in their own dtype, quantised blocks as float32.

        The result may be a view of the file, mapped privately: writing to it changes no file.

        Raises:
            Unsupported: its dtype is not one that can be computed with.
        """

    def int4(self) -> Int4Matrix | None:
        """Read it as it is stored, if that is a matrix in blocks of 4 bits; None: it is not."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model at rest.

    Args:
        source: the directory or file it was opened from.
        config: in the form of a Hugging Face config.json.
        tensors: by their Hugging Face names.
        eos_ids: the tokens that end a generation, as far as the model's own configuration names
            them; `tokenizer().eos_ids` adds the tokenizer's.
        load_tokenizer: builds the tokenizer, once.
        files: those that say what the model computes.
        stamp: of these files, from before they were read.
    """

    source: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    eos_ids: frozenset[int]
    load_tokenizer: Callable[[], Tokenizer]
    files: tuple[Path, ...]
    stamp: str

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer; it is built at the first call.

        Raises:
            BadCheckpoint: there is no tokenizer, or it is corrupt.
            Unsupported: it is of a kind that is not known.
        """
        return self.load_tokenizer()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        path: a Hugging Face directory, or a file whose name ends in .gguf.

    Raises:
        ModelNotFound: nothing that could be a model is there.
        BadCheckpoint: files are missing, truncated, corrupt or contradict each other.
        Unsupported: the files are of a kind that is refused, such as pickles.
        OutOfMemory: the files cannot be mapped.
    """
    try:
        return _open(path)
    except OSError as error:
        raise ModelNotFound(
            field="model",
            value=str(path),
            limit=f"cannot be read: {error.strerror}",
            remedy="Check who may read it",
        ) from error
    except MemoryError as error:
        raise OutOfMemory(
            field="model",
            value=str(path),
            limit="is larger than the memory that this process may map",
            remedy="Use a smaller model, or raise the limit",
        ) from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_directory(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    if path.suffix.lower() in _PICKLES and path.exists():
        raise Unsupported(
            field="model",
            value=str(path),
            limit="is a pickle, which could run code when it is opened, and is never read",
            remedy="Convert it to safetensors, with config.json and tokenizer.json beside it",
        )
    raise ModelNotFound(
        field="model",
        value=str(path),
        limit="is neither a model's directory nor a .gguf file"
        if path.exists()
        else "no such file or directory",
        remedy="Give a directory with config.json and safetensors, or a .gguf file",
    )


def _open_directory(path: Path) -> Checkpoint:
    files = (path / "config.json", *sorted(path.glob("*.safetensors*")))
    of_files = stamp(files)
    config = read_config(path)
    eos_ids = read_eos_ids(path, config)
    return Checkpoint(
        source=path,
        config=config,
        tensors=read_tensors(path),
        eos_ids=eos_ids,
        load_tokenizer=functools.cache(lambda: read_tokenizer(path, eos_ids)),
        files=files,
        stamp=of_files,
    )


def _open_gguf(path: Path) -> Checkpoint:
    of_file = stamp((path,))
    file = read_gguf(path)
    model = GgufModel(file)
    eos_ids = model.eos_ids()
    return Checkpoint(
        source=path,
        config=model.config(),
        tensors=model.tensors(),
        eos_ids=eos_ids,
        load_tokenizer=functools.cache(lambda: build_tokenizer(file, eos_ids)),
        files=(path,),
        stamp=of_file,
    )
