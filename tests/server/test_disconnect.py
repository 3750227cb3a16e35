"""A client that leaves, at every stage: what was begun for it ends, and nothing is left open."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from server.settings import Settings
from tests.server.asgi_client import Visit
from tests.server.requests import begins, chat, image, never, serving, until

pytestmark = pytest.mark.anyio


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
    async with serving(Settings(model="fake"), never) as (_, engine, app):
        visit = Visit(app, chat(stream=stream))
        await until(lambda: engine.open == 1)
        await visit.leave()
        assert engine.open == 0


async def test_leaving_before_the_first_byte_is_sent_aborts() -> None:
    class Deaf(Visit):
        async def _send(self, _: Any) -> None:
            self.first_byte.set()
            await asyncio.Event().wait()

    async with serving(Settings(model="fake"), begins) as (_, engine, app):
        visit = Deaf(app, chat(stream=True))
        await visit.first_byte.wait()
        assert engine.open == 1
        await visit.leave()
        assert engine.open == 0


async def test_leaving_while_images_are_loaded_never_reaches_the_engine() -> None:
    class Stuck:
        loading, ended, held_bytes = 0, 0, 0

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
