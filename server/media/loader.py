"""The front door: URLs in, images out, many at once, off the event loop.

    http(s)  one of `max_fetches` slots, held until the picture is decoded (bounds bytes in memory)
    decode   one of `max_decodes` threads (bounds full-size pixels in memory)

A URL gives any number of images: a picture is one, and what has pages or frames would be one for
each. Knows nothing about what the images are for.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from PIL import Image, ImageFile

from server.media.budget import Budget
from server.media.config import MediaConfig
from server.media.data_url import is_data_url, read_data_url
from server.media.decode import decode
from server.media.fetch import Fetcher, Resolver
from server.media.media_error import MediaError


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """One upright RGB picture. `width` and `height` are before any reduction.

    `digest` is the SHA-256 of the encoded bytes, in hex. `label` names it
    where it is one of several (its page, its time).
    """

    image: Image.Image = field(repr=False)
    digest: str
    width: int
    height: int
    num_bytes: int
    fetch_s: float
    decode_s: float
    label: str | None = None


LoadedImages = tuple[LoadedImage, ...]


class MediaLoader:
    """Loads the images of requests. One for the process; used from one event loop."""

    def __init__(
        self,
        config: MediaConfig | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        assert not ImageFile.LOAD_TRUNCATED_IMAGES, "something made Pillow accept broken images"
        self.config = config or MediaConfig()
        self._fetcher = Fetcher(self.config, transport=transport, resolve=resolve)
        self._slots = asyncio.Semaphore(self.config.max_fetches)
        self._threads = ThreadPoolExecutor(self.config.max_decodes, thread_name_prefix="media")

    async def load(self, url: str, *, param: str | None = None) -> LoadedImage:
        """The one image of a URL. Raises `MediaError`, which carries `param`."""
        (image,) = await self._load(url, param, Budget(self.config))
        return image

    async def load_all(
        self, urls: Sequence[str], params: Sequence[str | None]
    ) -> list[LoadedImages]:
        """The images of each URL of one request, in order, within the limits of one request.

        `params[i]` names `urls[i]` in errors. Raises the first `MediaError`; the rest is cancelled.
        """
        assert len(urls) == len(params)
        budget = Budget(self.config)
        tasks = [
            asyncio.create_task(self._load(url, param, budget))
            for url, param in zip(urls, params, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Close connections and let the threads end."""
        await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self, url: str, param: str | None, budget: Budget) -> LoadedImages:
        try:
            if is_data_url(url):
                return await self._in_thread(url, 0.0, budget)
            async with self._slots:
                begun_s = time.perf_counter()
                data = await self._fetcher.fetch(url, budget)
                return await self._in_thread(data, time.perf_counter() - begun_s, budget)
        except MediaError as error:
            error.param = param
            raise

    async def _in_thread(self, source: str | bytes, fetch_s: float, budget: Budget) -> LoadedImages:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, _finish, source, fetch_s, self.config, budget
        )


def _finish(
    source: str | bytes, fetch_s: float, config: MediaConfig, budget: Budget
) -> LoadedImages:
    """Runs in a thread: the bytes (or the data: URL that holds them) become one image."""
    begun_s = time.perf_counter()
    data = read_data_url(source, config, budget) if isinstance(source, str) else source
    decoded = decode(data, config, budget)
    image = LoadedImage(
        image=decoded.image,
        digest=hashlib.sha256(data).hexdigest(),
        width=decoded.width,
        height=decoded.height,
        num_bytes=len(data),
        fetch_s=fetch_s,
        decode_s=time.perf_counter() - begun_s,
    )
    return (image,)
