"""`/docs` and `/redoc` under a Content-Security-Policy: FastAPI writes these pages, with scripts in
them, so the policy names each by its digest.
"""

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc"})
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class DocsPolicy:
    """Gives these pages their header; everything else goes through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            return await self._app(scope, receive, send)
        start: Message = {}

        async def guarded(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # until the page itself comes, whole
                return
            if start:
                MutableHeaders(scope=start).update(headers_of(message["body"]))
                await send(start)
                start = {}
            await send(message)

        await self._app(scope, receive, guarded)
        return None


def headers_of(page: bytes) -> dict[str, str]:
    """What a browser may do on this page: its own scripts, this server, nothing else."""
    scripts = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _INLINE.findall(page)
    )
    return {
        "content-security-policy": f"default-src 'none'; script-src 'self' {scripts}; "
        "style-src 'self' 'unsafe-inline'; "  # both libraries write styles into the page
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
