"""A client that leaves, at every stage: what was begun for it ends, and nothing is left open."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI

from lookm.types import Request, TokenEvent
from server.config import Settings
from tests.server.asking import CHAT, chat, image, serving, word_events

pytestmark = pytest.mark.anyio


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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def begins(request: Request) -> AsyncIterator[TokenEvent]:
    """One word, and then nothing more."""
    yield word_events(request, ["one", " two"])[0]
    await asyncio.Event().wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_decoding_closes_the_engines_stream(stream: bool) -> None:
    async with serving(Settings(model="fake"), begins) as (client, engine, app):
        visit = Visit(app, chat(stream=stream))
        await until(lambda: engine.open == 1)
        if stream:
            await visit.first_byte.wait()
        await visit.leave()
        assert engine.open == 0
        assert bool(visit.sent) == stream or visit.sent[0]["status"] == 499
        metrics = (await client.get("/metrics")).text
    assert 'lookm_request_success_total{finish_reason="abort"} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_waiting_for_the_first_token_aborts(stream: bool) -> None:
    async def waits(_: Request) -> AsyncIterator[TokenEvent]:
        await asyncio.Event().wait()
        yield

    async with serving(Settings(model="fake"), waits) as (_, engine, app):
        visit = Visit(app, chat(stream=stream))
        await until(lambda: engine.open == 1)
        await visit.leave()
        assert engine.open == 0


async def test_leaving_while_images_are_loaded_never_reaches_the_engine() -> None:
    class Stuck:
        loading, ended = 0, 0

        async def load_all(self, *_: Any) -> Any:
            self.loading += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.ended += 1

        async def aclose(self) -> None:
            pass

    media = Stuck()
    async with serving(Settings(model="fake"), begins, media=media) as (_, engine, app):
        visit = Visit(app, chat(image()))
        await until(lambda: media.loading == 1)
        await visit.leave()
        assert media.ended == 1
        assert engine.requests == []


async def test_pages_are_free_after_a_client_left_a_real_worker(app: FastAPI) -> None:
    engine = app.state.services.engine
    await engine.wait_ready(30)
    visit = Visit(app, chat("fake:slow", image(), stream=True, max_tokens=5000))
    await visit.first_byte.wait()
    assert engine.totals.used_bytes > 0
    await visit.leave()
    await until(lambda: engine.totals.used_bytes == 0)
    assert engine.totals.running == 0
