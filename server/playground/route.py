"""Serves the page's files as they lie beside this one, under a policy that lets nothing else in.

Knows names, media types and headers; nothing about what is in the files.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES: Mapping[str, bytes] = {
    path.name: path.read_bytes()
    for path in sorted(Path(__file__).parent.iterdir())
    if path.suffix in MEDIA_TYPES
}
HEAD = b"<head>"
HEADERS: Mapping[str, str] = {
    # Its own scripts and styles only, none of them inline; images it was given; its own server.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again by its tag: a new release is seen at once
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    """The page. Its addresses are relative: behind a proxy's prefix they begin there, whether or
    not the browser's has a slash at its end."""
    root_path, page = request.scope.get("root_path", ""), FILES["index.html"]
    if root_path:
        page = page.replace(HEAD, HEAD + f'\n<base href="{root_path}/">'.encode(), 1)
    return _file(request, "index.html", page)


@router.get("/playground/{name}")
async def asset(request: Request, name: str) -> Response:
    """What the page loads."""
    if name not in FILES:
        raise HTTPException(404)
    return _file(request, name, FILES[name])


def _file(request: Request, name: str, content: bytes) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)
