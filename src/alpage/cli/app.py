"""App: the commands put together, and what the shell is told when one fails."""

import errno
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Final

import typer

from alpage.cli.terminal import print_error
from alpage.errors import AlpageError, InvalidValue

# What `alpage.cli.NAME` has of each command: a function, or an app of further ones.
_COMMANDS: Final[Mapping[str, str]] = {
    "generate": "generate",
    "chat": "chat",
    "serve": "serve",
    "hardware": "hardware",
    "models": "models_app",
    "plan": "plan_app",
    "bench": "bench_app",
}
_SHORT_HELP: Final[Mapping[str, str]] = {
    "plan": "Plan how a model runs on a cluster.",
    "bench": "Measure speed and use of memory.",
}


def build_app(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """Return the app with these commands; the modules of others are not imported."""
    # Plain help and plain tracebacks: the same text with every version of Rich, and no wait for it.
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(alpage)
    for name in names:
        command = getattr(import_module(f"alpage.cli.{name}"), _COMMANDS[name])
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, short_help=_SHORT_HELP.get(name))
        else:
            app.command(name)(command)
    return app


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from alpage.version import __version__

        print(__version__)
        raise typer.Exit


def alpage(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Generate text and chat with language models on the hardware at hand, and serve them."""


def main() -> None:
    """Run the command line and exit.

    The status is 0, or 1 after an `AlpageError`, 2 if the command was written wrongly, 130 after
    Ctrl-C. Any other exception is a bug of ours and keeps its traceback.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows few characters shows the others as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            build_app(_asked_for(sys.argv[1:]))(prog_name="alpage")
        finally:
            sys.stdout.flush()
    except AlpageError as error:
        print_error(error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        if error.errno == errno.ENOSPC:
            print_error(_full_disk())
        # What is still to be written, nobody reads (as in `| head -1`) or no disk holds: let the
        # interpreter's last flush write it nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _asked_for(arguments: Sequence[str]) -> Iterable[str]:
    """Return the command that is run, or all where help or an error may speak of them."""
    return arguments[:1] if arguments and arguments[0] in _COMMANDS else _COMMANDS


def _open_closed_streams() -> None:
    """Let streams that the shell closed, as `<&-` does, be empty ones."""
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BytesIO())
    sys.stdout = sys.stdout or io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys.stderr = sys.stderr or io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _full_disk() -> AlpageError:
    return InvalidValue(
        field="stdout",
        value=None,
        limit="leads to a disk that is full",
        remedy="Free disk space, or write somewhere else",
    )
