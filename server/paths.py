"""Where a request goes, however it got here: behind a proxy's prefix, with a slash at its end.

With `--root-path /lookm` clients ask a proxy for `/lookm/v1/models`. Some proxies take the prefix
away and some leave it: both arrive at the same route. A slash at the end is dropped, not redirected
from: most clients send a redirected POST without its body. Knows paths; nothing about routes but
where ours begin.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

# First segments of routes that have a second one. As a prefix, one of them could not be told from a
# route whose prefix was taken away.
OWN_FOLDERS = frozenset({"docs", "playground", "static-offline-docs", "v1"})
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def parse_root_path(value: object) -> str:
    """The prefix without a slash at its end. Raises `ValueError`.

    >>> parse_root_path("/lookm/")
    '/lookm'
    """
    root_path = str(value).rstrip("/")
    if not _ROOT_PATH.fullmatch(root_path):
        raise ValueError("give a path such as /lookm, of letters, digits and ._~-")
    first = root_path[1:].partition("/")[0]
    if first in OWN_FOLDERS:
        raise ValueError(f"the server's own paths begin with /{first}: choose another prefix")
    return root_path


def own_path(path: str, root_path: str) -> str:
    """The path of a route: without the prefix, if it is there, and without a slash at its end.

    >>> own_path("/lookm/v1/models/", "/lookm"), own_path("/v1/models", "/lookm")
    ('/v1/models', '/v1/models')
    """
    if f"{path}/".startswith(f"{root_path}/"):
        path = path[len(root_path) :]
    return path.rstrip("/") or "/"


class Paths:
    """Gives every request the path that ASGI wants: the prefix, then the path of a route."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root_path = self._root_path
            path = root_path + own_path(scope["path"], root_path)
            scope = {**scope, "root_path": root_path, "path": path}
        await self._app(scope, receive, send)
