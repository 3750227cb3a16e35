"""The front door: URLs in, images out, many at once, off the event loop.

    http(s)  each request may download one, and all together `max_fetches` more
    decode   `max_decodes` turns, shared fairly; held until `use` has made something of the picture,
             so that no more pictures are in memory; in the `sandbox`, when its memory is free

A URL gives any number of images: a picture is one, and what has pages or frames would be one for
each. Knows nothing about what the images are for.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from PIL import Image, ImageFile

from server.media.budget import Budget, Downloads, Memory
from server.media.config import MediaConfig
from server.media.data_url import is_data_url, read_data_url
from server.media.decode import Claim, examine
from server.media.fetch import Fetcher, Resolver
from server.media.media_error import MediaError
from server.media.sandbox import Order, Sandbox
from server.turns import Turns


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """One upright RGB picture. `width` and `height` are before any reduction.

    `digest` is the SHA-256 of the encoded bytes, in hex. `label` names it
    where it is one of several (its page, its time); `param` is what errors call its URL.
    """

    image: Image.Image = field(repr=False)
    digest: str
    width: int
    height: int
    num_bytes: int
    fetch_s: float
    decode_s: float
    label: str | None = None
    param: str | None = None


T = TypeVar("T")
Use = Callable[[LoadedImage], Awaitable[T]]
Known = Callable[[str], T | None]


def _nothing(_: str) -> None:
    return None


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
        self._fetches = Turns(self.config.max_fetches, each=1)
        self._downloads = Downloads(self.config.max_downloaded_bytes)
        self._decodes = Turns(self.config.max_decodes)
        self._memory = Memory(self.config.memory_bytes)
        self._threads = ThreadPoolExecutor(self.config.max_decodes, thread_name_prefix="media")
        self._sandbox = Sandbox(self.config.max_decodes)

    @property
    def held_bytes(self) -> int:
        """What decoding may be taking now, and what is downloaded for it."""
        return self._memory.held_bytes + self._downloads.held_bytes

    def warm_up(self) -> None:
        """Start what the first picture would wait for."""
        self._sandbox.warm_up()

    async def load(self, url: str, *, param: str | None = None) -> LoadedImage:
        """The one image of a URL. Raises `MediaError`, which carries `param`."""
        ((image,),) = await self.load_all([url], [param], _as_it_is)
        return image

    async def load_all(
        self,
        urls: Sequence[str],
        params: Sequence[str | None],
        use: Use[T],
        known: Known[T] = _nothing,
    ) -> list[tuple[T, ...]]:
        """What `use` makes of the images of each URL of one request, in the order of the URLs.

        What is `known` by the digest of its bytes is not decoded again. `params[i]` names `urls[i]`
        in errors. Raises the first `MediaError`, or what `use` raises;
        the rest is cancelled.
        """
        assert len(urls) == len(params)
        budget = Budget(self.config)
        tasks = [
            asyncio.create_task(self._load(url, param, budget, use, known))
            for url, param in zip(urls, params, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Close connections, and let threads and processes end."""
        await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    async def _load(
        self, url: str, param: str | None, budget: Budget, use: Use[T], known: Known[T]
    ) -> tuple[T, ...]:
        try:
            if is_data_url(url):
                return await self._decoded(url, 0.0, param, budget, use, known)
            with self._downloads.counted(budget) as take:
                async with self._fetches.turn():
                    begun_s = time.perf_counter()
                    data = await self._fetcher.fetch(url, take)
                    took_s = time.perf_counter() - begun_s
                return await self._decoded(data, took_s, param, budget, use, known)
        except MediaError as error:
            error.param = param
            raise

    async def _decoded(
        self,
        source: str | bytes,
        fetch_s: float,
        param: str | None,
        budget: Budget,
        use: Use[T],
        known: Known[T],
    ) -> tuple[T, ...]:
        async with self._decodes.turn():
            in_thread = asyncio.get_running_loop().run_in_executor
            sent = await in_thread(self._threads, _read, source, self.config, budget)
            if (found := known(sent.digest)) is not None:
                return (found,)
            async with self._memory.hold(sent.claim.cost_bytes):
                begun_s = time.perf_counter()
                facts, pixels = await self._sandbox.run(self._order(sent.claim), sent.data)
                image = Image.frombytes("RGB", tuple(facts["kept"]), pixels)
                del pixels
            loaded = LoadedImage(
                image=image,
                digest=sent.digest,
                width=facts["width"],
                height=facts["height"],
                num_bytes=len(sent.data),
                fetch_s=fetch_s,
                decode_s=time.perf_counter() - begun_s,
                param=param,
            )
            return (await use(loaded),)

    def _order(self, claim: Claim) -> Order:
        config = self.config
        options = {
            "max_pixels": config.max_pixels,
            "max_aspect": config.max_aspect,
            "target_side": config.target_side,
        }
        limits = (claim.cost_bytes, config.decode_cpu_s, config.decode_limit_s)
        return Order("picture", options, *limits)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Encoded bytes, and what is known of them before they are decoded."""

    data: bytes
    digest: str
    claim: Claim


def _read(source: str | bytes, config: MediaConfig, budget: Budget) -> _Sent:
    """Runs in a thread. Raises `MediaError`, also for what the request may not have any more."""
    data = read_data_url(source, config, budget) if isinstance(source, str) else source
    claim = examine(data, config)
    budget.take_pixels(claim.kept[0] * claim.kept[1])
    return _Sent(data, hashlib.sha256(data).hexdigest(), claim)


async def _as_it_is(image: LoadedImage) -> LoadedImage:
    return image
