"""The front door: URLs in, images out, many at once, off the event loop.

    http(s)  each request may download one, and all together `max_fetches` more
    decode   `max_decodes` turns, shared fairly; held until `use` has made something of the picture,
             so that no more pictures are in memory; in the `sandbox`, when its memory is free

A URL gives any number of images: a picture is one, a video (`videos`) one for each of its frames
that are looked at. Knows nothing about what the images are for.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpx
from PIL import Image, ImageFile

from server.media.budget import Budget, Downloads, Memory
from server.media.config import MediaConfig
from server.media.data_url import is_data_url, read_data_url
from server.media.decode import Claim, examine
from server.media.fetch import Fetcher, Resolver, Take
from server.media.loaded import Known, LoadedImage, T, Use, Wish
from server.media.media_error import MediaError, of_video
from server.media.sandbox import Order, Sandbox
from server.media.together import together
from server.media.videos import SCHEME, Video, Videos, video_config
from server.turns import Turns


def _nothing(_: str, __: str | None = None, /) -> None:
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
        self._video_config = video_config(self.config)
        self._video_fetcher = Fetcher(self._video_config, transport=transport, resolve=resolve)
        self._fetches = Turns(self.config.max_fetches, each=1)
        self._downloads = Downloads(self.config.max_downloaded_bytes)
        self._decodes = Turns(self.config.max_decodes)
        self._memory = Memory(self.config.memory_bytes)
        self._threads = ThreadPoolExecutor(self.config.max_decodes, thread_name_prefix="media")
        self._sandbox = Sandbox(self.config.max_decodes + self.config.max_videos)
        self._videos = Videos(self.config, self._memory, self._sandbox)

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
        urls: Sequence[str | Video],
        params: Sequence[str | None],
        use: Use[T],
        known: Known[T] = _nothing,
    ) -> list[tuple[T, ...]]:
        """What `use` makes of the images of each URL or video of one request, in their order.

        What is `known` by the digest of its bytes is not decoded again. `params[i]` names `urls[i]`
        in errors. Raises the first `MediaError`, or what `use` raises;
        the rest is cancelled.
        """
        assert len(urls) == len(params)
        budget = Budget(self.config)
        wishes = [Wish(param, budget, use, known) for param in params]
        return await together(map(self._load, urls, wishes))

    async def aclose(self) -> None:
        """Close connections, and let threads and processes end."""
        await self._fetcher.aclose()
        await self._video_fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    async def _load(self, url: str | Video, wish: Wish[T]) -> tuple[T, ...]:
        try:
            if isinstance(url, Video):
                return await self._video(url, wish)
            wish.budget.take_images(1)
            if is_data_url(url):
                return await self._decoded(url, 0.0, wish)
            with self._downloads.counted(wish.budget) as take:
                data, took_s = await self._fetched(url, take, self._fetcher)
                return await self._decoded(data, took_s, wish)
        except MediaError as error:
            error.param = error.param or wish.param
            if isinstance(url, Video):
                raise of_video(error) from error
            raise

    async def _fetched(self, url: str, take: Take, fetcher: Fetcher) -> tuple[bytes, float]:
        """The bytes behind a URL, when it is this request's turn, and how long that took."""
        async with self._fetches.turn():
            begun_s = time.perf_counter()
            data = await fetcher.fetch(url, take)
            return data, time.perf_counter() - begun_s

    async def _video(self, video: Video, wish: Wish[T]) -> tuple[T, ...]:
        """The frames of a video, when it is its turn."""
        if video.url.startswith(SCHEME):
            return self._videos.named(video, wish)
        self._videos.check()
        if is_data_url(video.url):
            async with self._videos.turn():
                read = partial(read_data_url, video.url, self._video_config, wish.budget)
                data = await asyncio.get_running_loop().run_in_executor(self._threads, read)
                return await self._videos.load(data, video, 0.0, wish)
        with self._downloads.counted(wish.budget) as take:
            data, took_s = await self._fetched(video.url, take, self._video_fetcher)
            async with self._videos.turn():
                return await self._videos.load(data, video, took_s, wish)

    async def _decoded(self, source: str | bytes, fetch_s: float, wish: Wish[T]) -> tuple[T, ...]:
        async with self._decodes.turn():
            in_thread = asyncio.get_running_loop().run_in_executor
            sent = await in_thread(self._threads, _read, source, self.config, wish.budget)
            if (found := wish.known(sent.digest)) is not None:
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
                param=wish.param,
            )
            return (await wish.use(loaded),)

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
