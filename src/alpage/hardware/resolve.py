"""Resolve: from what a user writes for a cluster to the cluster."""

from pathlib import Path

from alpage.hardware.catalogue import cluster_from_catalogue
from alpage.hardware.cluster import Cluster
from alpage.hardware.cluster_file import load_cluster
from alpage.hardware.local import is_local, load_local


def resolve_cluster(text: str, *, cache: Path | None = None) -> Cluster:
    """Return the cluster that a text means.

    Args:
        text: "local" or "local-N", this machine as `alpage hardware` measured it; the path of a
            file whose name ends in .toml; or a name of the catalogue with a size, such as
            "tpu-v4-64".
        cache: where measured clusters are kept; None is `$XDG_CACHE_HOME/alpage/clusters`.

    Raises:
        InvalidValue: it means none, or the file does not describe a cluster.
    """
    if is_local(text):
        return load_local(text, cache)
    if text.endswith(".toml"):
        return load_cluster(Path(text).expanduser())
    return cluster_from_catalogue(text)
