"""App: the commands put together, and what the shell is told when one fails."""

import errno
import io
import os
import sys
from typing import Annotated

import typer

from alpage.cli.bench import bench_app
from alpage.cli.chat import chat
from alpage.cli.generate import generate
from alpage.cli.hardware import hardware
from alpage.cli.models import models_app
from alpage.cli.plan import plan_app
from alpage.cli.serve import serve
from alpage.cli.terminal import print_error
from alpage.errors import AlpageError, InvalidValue

# Plain help and plain tracebacks: the same text with every version of Rich, and no wait for it.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(hardware)
app.add_typer(models_app, name="models")
app.add_typer(plan_app, name="plan", short_help="Plan how a model runs on a cluster.")
app.add_typer(bench_app, name="bench", short_help="Measure speed and use of memory.")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from alpage.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
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
            app(prog_name="alpage")
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
