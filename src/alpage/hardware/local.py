"""Local: this machine as a cluster, as it was measured and kept in alpage's cache directory.

`local-N` is this machine shared by N processes, or N of its GPUs: what was measured with N of them
at work, never reckoned from another N. `local` is the one with all of the machine's devices.
"""

import os
import tempfile
from pathlib import Path

from alpage.errors import InvalidValue
from alpage.hardware.cluster import Cluster
from alpage.hardware.cluster_file import load_cluster, to_toml


def default_cluster_cache() -> Path:
    """Return where measured clusters are kept: `$XDG_CACHE_HOME/alpage/clusters`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "alpage" / "clusters"


def is_local(name: str) -> bool:
    """Return whether a name means this machine."""
    stem, _, digits = name.partition("-")
    return stem == "local" and (name == "local" or (digits.isascii() and digits.isdecimal()))


def load_local(name: str, cache: Path | None = None) -> Cluster:
    """Return this machine as it was measured.

    Args:
        name: "local" or "local-N".
        cache: the directory that `save_local` wrote to; None is `default_cluster_cache()`.

    Raises:
        InvalidValue: it was not measured, or not with that many processes.
    """
    path = (default_cluster_cache() if cache is None else cache) / f"{name}.toml"
    if not path.is_file():
        num_devices = name.partition("-")[2]
        option = f" --devices {num_devices}" if num_devices else ""
        raise InvalidValue(
            field="cluster",
            value=name,
            limit=f"this machine was not measured{' with that many devices' if option else ''}",
            remedy=f"Run: alpage hardware{option}",
        )
    return load_cluster(path)


def save_local(cluster: Cluster, *, is_default: bool, cache: Path | None = None) -> Path:
    """Keep a measured cluster and return the path of its file.

    Args:
        cluster: its name is "local-N".
        is_default: whether it is also what "local" means.
        cache: the directory; None is `default_cluster_cache()`.

    Raises:
        InvalidValue: the directory cannot be written to.
    """
    cache, text = default_cluster_cache() if cache is None else cache, to_toml(cluster)
    path = cache / f"{cluster.name}.toml"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _write(path, text)
        if is_default:
            _write(cache / "local.toml", text)
    except OSError as error:
        raise InvalidValue(
            field="cache",
            value=str(cache),
            limit=f"cannot be written to: {error}",
            remedy="Free disk space, or choose another directory with XDG_CACHE_HOME",
        ) from error
    return path


def _write(path: Path, text: str) -> None:
    # A reader never sees half of a file.
    with tempfile.TemporaryDirectory(prefix=".save-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.write_text(text, encoding="utf-8")
        part.replace(path)
