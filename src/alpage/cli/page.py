"""Page: a report as one HTML file that needs nothing beside it."""

from html import escape
from importlib.resources import files
from pathlib import Path

from alpage.errors import InvalidValue


def to_page(title: str, header: str, main: str, footer: str) -> str:
    """Return a document in the style of all reports.

    Args:
        title: as text; the other parts are HTML.
        header: before the parts of the report.
        main: these.
        footer: what is to be known about all of it.
    """
    style = files("alpage.cli").joinpath("plan_report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>\n{style}</style></head>\n<body><header>{header}</header><main>{main}</main>"
        f"<footer>{footer}</footer></body></html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Write a report.

    Raises:
        InvalidValue: it cannot be written there.
    """
    try:
        path.expanduser().write_text(text, encoding="utf-8")
    except (OSError, RuntimeError) as error:
        raise InvalidValue(
            field="html",
            value=str(path),
            limit=f"cannot be written: {error.strerror if isinstance(error, OSError) else error}",
            remedy="Give a file in a directory that you may write to",
        ) from error
