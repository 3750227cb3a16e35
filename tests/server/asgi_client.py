"""One request on a bare ASGI connection: the client leaves when the test says so."""

import asyncio
import json
from typing import Any

from fastapi import FastAPI

from tests.server.requests import CHAT


class Visit:
    """One request on a bare ASGI connection, whose client can leave at any moment."""

    def __init__(self, app: FastAPI, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()
        self._left = asyncio.Event()
        self._sent_body = False
        self.sent: list[Any] = []
        self.first_byte = asyncio.Event()
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
            "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "http_version": "1.1", "server": ("test", 80), "client": ("test", 1),
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def leave(self) -> None:
        self._left.set()
        await self.task

    async def _receive(self) -> dict[str, Any]:
        if not self._sent_body:
            self._sent_body = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and message.get("body"):
            self.first_byte.set()
