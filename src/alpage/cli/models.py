"""Models: `alpage models`, what has a short name and what of it is at hand."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from alpage.cli.table import aligned
from alpage.models import catalogue
from alpage.units import format_bytes

models_app = typer.Typer()


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    is_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models that have a short name, or pull one."""
    if context.invoked_subcommand is not None:
        return
    listings = catalogue.list_models(catalogue.default_cache())
    if is_json:
        shown = [dataclasses.asdict(listing) | {"path": str(listing.path)} for listing in listings]
        print(json.dumps(shown))
    else:
        print(_to_table(listings))


@models_app.command()
def pull(name: Annotated[str, typer.Argument(metavar="NAME", help="A short name.")]) -> None:
    """Get a model into the model cache and print its path."""
    if not sys.stderr.isatty():
        print(catalogue.pull(name))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"pulling {name}", total=None)
        path = catalogue.pull(
            name,
            on_progress=lambda num_bytes, num_total: progress.update(
                task, completed=num_bytes, total=num_total
            ),
        )
    print(path)


def _to_table(listings: Sequence[catalogue.ModelListing]) -> str:
    return aligned(
        [
            ("NAME", "SIZE", "LICENSE", "PATH"),
            *(
                (
                    listing.name,
                    format_bytes(listing.size_bytes),
                    listing.license,
                    str(listing.path)
                    if listing.is_present
                    else f"(alpage models pull {listing.name})",
                )
                for listing in listings
            ),
        ]
    )
