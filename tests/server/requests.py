"""What the tests of the HTTP side send, and how they read what comes back."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from lookm.models.generation import GenerationDefaults
from lookm.types import EngineStats, ModelInfo, Request, TokenEvent
from server.app import Parts, create_app
from server.fake.engine import cache_report
from server.fake.processor import FakeProcessor
from server.media import MediaLoader
from server.settings import Settings

CHAT = "/v1/chat/completions"
INFO = ModelInfo("fake", 8192, 1024, 16, 2**26, 2, "float32", "cpu")


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(data or png()).decode()


def image(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_url()}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    """A chat body: one user turn of `parts` (strings are text), plus `fields`."""
    content = [text(part) if isinstance(part, str) else part for part in parts or ("hello there",)]
    body = {"model": "fake", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    return body | fields


def events(body: str) -> list[Any]:
    """The data of each server-sent event, decoded; the last must be `[DONE]`."""
    *lines, done = [line for line in body.split("\n\n") if line]
    assert done == "data: [DONE]"
    return [json.loads(line.split("data: ", 1)[1]) for line in lines]


def word_events(request: Request, words: Sequence[str]) -> list[TokenEvent]:
    """A finished answer of `words`."""
    report = cache_report(request)
    return [
        TokenEvent(
            request_id=request.id,
            token_id=n,
            text=word,
            num_generated=n,
            finish="stop" if n == len(words) else None,
            cache=report if n in (1, len(words)) else None,
        )
        for n, word in enumerate(words, 1)
    ]


@dataclass
class ScriptedEngine:
    """An engine in this process: it does what its `script` says and remembers its requests."""

    script: Callable[[Request], AsyncIterator[TokenEvent]]
    info: ModelInfo | None = None
    loads: ModelInfo = INFO
    ready: bool = False
    condition: str = "The engine is starting."
    restarts: int = 0
    requests: list[Request] = field(default_factory=list)
    open: int = 0
    accepts: bool = False
    observers: list[Any] = field(default_factory=list)
    failure_observers: list[Any] = field(default_factory=list)
    loading: Callable[[], Awaitable[None]] | None = None
    totals: EngineStats = field(default_factory=lambda: EngineStats(2**26, 0, 0, 0, 0))

    @property
    def num_open(self) -> int:
        return self.open

    async def submit(
        self, request: Request, accepted: Callable[[], None]
    ) -> AsyncGenerator[TokenEvent]:
        self.requests.append(request)
        self.open += 1
        if self.accepts:
            accepted()
        try:
            async for event in self.script(request):
                yield event
        finally:
            self.open -= 1

    async def start(self) -> None:
        pass

    async def wait_ready(self, timeout_s: float | None = None) -> ModelInfo:
        if self.loading is not None:
            await self.loading()
        self.info, self.ready = self.loads, True
        return self.loads

    async def wait_failed(self) -> Exception:
        await asyncio.Event().wait()
        raise AssertionError

    async def drain(self, timeout_s: float) -> int:
        return self.end_running()

    def end_running(self) -> int:
        self.ready = False
        return 0

    async def stop(self) -> None:
        pass


@asynccontextmanager
async def serving(
    settings: Settings, script: Callable[[Request], AsyncIterator[TokenEvent]], **parts: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedEngine, FastAPI]]:
    """A client of an app with a scripted engine. `wait=False` does not wait for it to be ready."""
    engine = ScriptedEngine(
        script,
        loading=parts.get("loading"),
        accepts=parts.get("accepts", False),
        loads=parts.get("info", INFO),
    )

    def make(settings: Settings) -> Parts:
        prepare = parts.get("prepare", GenerationDefaults)
        media = parts.get("media") or MediaLoader(settings.media_config())
        return Parts(engine, media, parts.get("load_processor", FakeProcessor), prepare)

    app = create_app(settings, make)
    async with app.router.lifespan_context(app), in_process(app) as client:
        if parts.get("wait", True):
            await app.state.services.booting
        yield client, engine, app


@asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without sockets."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def says(request: Request) -> AsyncIterator[TokenEvent]:
    """A script: three words."""
    for event in word_events(request, ["one", " two", " three"]):
        yield event


async def begins(request: Request) -> AsyncIterator[TokenEvent]:
    """One word, and then nothing more."""
    yield word_events(request, ["one", " two"])[0]
    await asyncio.Event().wait()


async def never(request: Request) -> AsyncIterator[TokenEvent]:
    """Nothing, for ever."""
    await asyncio.Event().wait()
    yield word_events(request, ["one"])[0]


def says_after(release: asyncio.Event) -> Callable[[Request], AsyncIterator[TokenEvent]]:
    """A script that speaks once it may."""

    async def script(request: Request) -> AsyncIterator[TokenEvent]:
        await release.wait()
        async for event in says(request):
            yield event

    return script


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
