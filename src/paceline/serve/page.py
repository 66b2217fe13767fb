"""The playground: a page at `/` and its files, all of them in the package. They tell nothing of the server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from fastapi import APIRouter, Request, Response

from paceline.serve.errors import ApiError

FOLDER = Path(__file__).with_name("playground")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere is loaded or asked, no script or style stands in the page, and no other page may frame it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask again, and get 304 while it is the same
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """Name to file, read once. Only these can be had, whatever path is asked for."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        found[path.name] = File(content, TYPES[path.suffix], f'"{blake2b(content, digest_size=12).hexdigest()}"')
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return _answer(request, "index.html")


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def part(request: Request, name: str) -> Response:
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = files().get(name)
    if file is None:
        raise ApiError(404, "There is no such file; the playground is at /.")
    headers = HEADERS | {"ETag": file.etag}
    known = request.headers.get("If-None-Match", "")
    if file.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
