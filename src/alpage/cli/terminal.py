"""Terminal: what people are told beside the results, on stderr.

Rich is imported where it is used: without a terminal, nobody waits for it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alpage.errors import AlpageError

if TYPE_CHECKING:
    from rich.console import Console

# Control characters of a model's text, shown instead of obeyed: U+2400 and onwards picture them.
_PICTURES = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def print_error(error: AlpageError) -> None:
    """Print an error as one line, red on a terminal."""
    _print_line(f"error: {error}", style="red")


def print_note(text: str) -> None:
    """Print a line that is not about the results, dim on a terminal."""
    _print_line(text, style="dim")


@contextmanager
def working(doing: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something goes on; the value prints lines meanwhile.

    Args:
        doing: what goes on, such as "loading smollm2-135m".
    """
    if not sys.stderr.isatty():
        yield lambda line: print(line, file=sys.stderr)
        return
    console = _console()
    with console.status(doing):
        yield lambda line: _print(console, line)


@contextmanager
def counting(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of what is done, where there is a terminal to show it; the value adds to it.

    Args:
        doing: what is counted, such as "requests".
        total: how many there are.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(doing, *columns, console=_console(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda num_done: progress.advance(task, num_done)


def print_text(text: str, end: str = "\n") -> None:
    """Print a model's text to stdout at once; a terminal gets no control characters from it."""
    print(text.translate(_PICTURES) if sys.stdout.isatty() else text, end=end, flush=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _print_line(line: str, style: str) -> None:
    if sys.stderr.isatty():
        _print(_console(), line, style)
    else:
        print(_one_line(line), file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _print(console: "Console", line: str, style: str | None = None) -> None:
    # Nothing in the line is markup, and terminals wrap better than we do.
    console.print(_one_line(line), style=style, markup=False, highlight=False, soft_wrap=True)
