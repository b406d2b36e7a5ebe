"""What every test shares: two hypothesis profiles, golden files, and the command line."""

import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=200)
settings.register_profile("nightly", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def pytest_configure() -> None:
    """Hear Ctrl-C where the shell that started the tests in the background told them not to.

    The programs that tests start and interrupt inherit it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let models that were pulled be found, and what the tests load be kept elsewhere."""
    from alpage.models.catalogue import default_cache

    own, cache = default_cache().parent, tmp_path_factory.mktemp("cache")
    (cache / "alpage").mkdir()
    for name in ("clusters", "models"):
        (cache / "alpage" / name).symlink_to(own / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in tests/golden, or write it there."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"no {path}: look at the text, then run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}"

    return compare


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `alpage` with arguments in this process; return its status, stdout and stderr."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        from alpage.cli import main

        monkeypatch.setattr(sys, "argv", ["alpage", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
        capsys.readouterr()  # what making a model printed
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run
