"""Page files: the web page at `/`, and what a browser is told of its parts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Final, final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

_INDEX: Final = "index.html"
_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing comes from elsewhere, nothing runs that is not a file of the page, nobody frames it.
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, and asked for again each time: another version shows at once.
    "Cache-Control": "no-cache",
}


@final
@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent."""

    content: bytes
    headers: Mapping[str, str]

    def answer(self, request: Request) -> Response:
        """Send it, unless the browser has it."""
        known = request.headers.get("if-none-match", "")
        if self.headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def page_files() -> dict[str, PageFile]:
    """Return all files of the page, by their names."""
    found = {}
    for entry in files("alpage.serve.http").joinpath("page").iterdir():
        kind = _TYPES.get(PurePath(entry.name).suffix)
        if kind is not None:
            content = entry.read_bytes()
            tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
            headers = {**_HEADERS, "Content-Type": kind, "ETag": tag}
            found[entry.name] = PageFile(content, headers)
    return found


def add_page(app: FastAPI) -> None:
    """Add the routes of the page. They know names, not paths: nothing else can be asked for."""
    parts = page_files()
    first = parts.pop(_INDEX)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return first.answer(request)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str, request: Request) -> Response:
        found = parts.get(name)
        if found is None:
            raise HTTPException(404)
        return found.answer(request)
