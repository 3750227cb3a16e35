"""Pictures made here, and loaders that reach no network."""

import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server.media import MediaConfig, MediaLoader
from server.media.address import Address
from server.media.fetch import Resolver

PUBLIC = "93.184.216.34"
Handler = Callable[[httpx.Request], httpx.Response]
Loading = Callable[..., AbstractAsyncContextManager[MediaLoader]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def picture(width: int = 8, height: int = 6, mode: str = "RGB") -> Image.Image:
    """Noise, always the same."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def resolver(names: Mapping[str, list[str]] | None = None) -> Resolver:
    """Every name is public, except those given."""

    async def resolve(host: str) -> list[Address]:
        return [ip_address(text) for text in (names or {}).get(host, [PUBLIC])]

    return resolve


class Body(httpx.AsyncByteStream):
    """A response body in chunks; `produced` counts the bytes that were read."""

    def __init__(self, chunk: bytes, times: int = 1) -> None:
        self.chunk, self.times, self.produced, self.closed = chunk, times, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.times):
            self.produced += len(self.chunk)
            yield self.chunk

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def loading() -> Loading:
    """`async with loading(handler, names=..., max_bytes=...) as loader`."""

    @asynccontextmanager
    async def make(
        handler: Handler | None = None,
        names: Mapping[str, list[str]] | None = None,
        **config: Any,
    ) -> AsyncIterator[MediaLoader]:
        def unexpected(request: httpx.Request) -> httpx.Response:
            raise AssertionError("nothing should be fetched")

        transport = httpx.MockTransport(handler or unexpected)
        loader = MediaLoader(MediaConfig(**config), transport=transport, resolve=resolver(names))
        try:
            yield loader
        finally:
            await loader.aclose()

    return make
