"""The front door: URLs in, images out, many at once, off the event loop.

    http(s)  each request may download one, and all together `max_fetches` more
    decode   `max_decodes` turns, shared fairly; held until `use` has made something of the picture,
             so that no more pictures are in memory; in the `sandbox`, when its memory is free

A source gives any number of images: the URL of a picture one, a document (`documents`) one for each
page, a video (`videos`) one for each of its frames that are looked at. A kind of source is a file,
and a case of `_images` here. Knows nothing about what the images are for.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import httpx
from PIL import Image, ImageFile

from server.media.budget import Budget, Downloads, Memory
from server.media.config import MediaConfig
from server.media.data_url import is_data_url, read_data_url
from server.media.decode import Claim, examine
from server.media.documents import Documents, File, wanted
from server.media.fetch import Fetcher, Resolver, Take, too_many_bytes
from server.media.loaded import Known, LoadedImage, T, Use, Wish
from server.media.media_error import Kind, MediaError, of_kind
from server.media.pdf import is_pdf
from server.media.sandbox import Order, Sandbox
from server.media.together import together
from server.media.videos import SCHEME, Video, Videos, video_config
from server.turns import Turns

Source = str | File | Video  # the URL of a picture, or what has others
KINDS: Mapping[type[Source], Kind] = {str: "image", File: "file", Video: "video"}


def _nothing(*_: str | None) -> None:
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
        self._file_config = replace(self.config, max_bytes=self.config.max_file_bytes)
        self._file_fetcher = Fetcher(self._file_config, transport=transport, resolve=resolve)
        self._video_config = video_config(self.config)
        self._video_fetcher = Fetcher(self._video_config, transport=transport, resolve=resolve)
        self._fetches = Turns(self.config.max_fetches, each=1)
        self._downloads = Downloads(self.config.max_downloaded_bytes)
        self._decodes = Turns(self.config.max_decodes)
        self._memory = Memory(self.config.memory_bytes)
        self._threads = ThreadPoolExecutor(self.config.max_decodes, thread_name_prefix="media")
        self._sandbox = Sandbox(self.config.max_decodes + self.config.max_videos)
        self._documents = Documents(self.config, self._decodes, self._memory, self._sandbox)
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
        sources: Sequence[Source],
        params: Sequence[str | None],
        use: Use[T],
        known: Known[T] = _nothing,
    ) -> list[tuple[T, ...]]:
        """What `use` makes of the images of each source of one request, in their order.

        What is `known` by the digest of its bytes is not decoded again. `params[i]` names
        `sources[i]` in errors. Raises the first `MediaError`, or what `use` raises;
        the rest is cancelled.
        """
        assert len(sources) == len(params)
        budget = Budget(self.config)
        wishes = [Wish(param, budget, use, known) for param in params]
        return await together(map(self._load, sources, wishes))

    async def aclose(self) -> None:
        """Close connections, and let threads and processes end."""
        await self._fetcher.aclose()
        await self._file_fetcher.aclose()
        await self._video_fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    async def _load(self, source: Source, wish: Wish[T]) -> tuple[T, ...]:
        try:
            return await self._images(source, wish)
        except MediaError as error:
            raise of_kind(error, KINDS[type(source)], wish.param) from error

    async def _images(self, source: Source, wish: Wish[T]) -> tuple[T, ...]:
        match source:
            case File():
                return await self._file(source, wish)
            case Video():
                return await self._video(source, wish)
            case url:
                return await self._picture(url, wish)

    async def _picture(self, url: str, wish: Wish[T]) -> tuple[T, ...]:
        wish.budget.take_images(1)
        if is_data_url(url):
            return await self._decoded(url, 0.0, wish)
        with self._downloads.counted(wish.budget) as take:
            data, took_s = await self._fetched(url, take, self._fetcher)
            return await self._decoded(data, took_s, wish)

    async def _fetched(self, url: str, take: Take, fetcher: Fetcher) -> tuple[bytes, float]:
        """The bytes behind a URL, when it is this request's turn, and how long that took."""
        async with self._fetches.turn():
            begun_s = time.perf_counter()
            data = await fetcher.fetch(url, take)
            return data, time.perf_counter() - begun_s

    async def _inside(self, url: str, config: MediaConfig, budget: Budget) -> bytes:
        """The bytes of a data: URL, read in a thread."""
        read = partial(read_data_url, url, config, budget)
        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def _file(self, file: File, wish: Wish[T]) -> tuple[T, ...]:
        """The pages of a document; of a file that is a picture, that."""
        if file.data is not None:
            wish.budget.take_bytes(len(file.data))
            return await self._opened(file.data, 0.0, file, wish)
        with self._downloads.counted(wish.budget) as take:
            took_s = 0.0
            if is_data_url(file.url):
                async with self._decodes.turn():
                    data = await self._inside(file.url, self._file_config, Budget(self.config))
                take(len(data))
            else:
                data, took_s = await self._fetched(file.url, take, self._file_fetcher)
            return await self._opened(data, took_s, file, wish)

    async def _opened(
        self, data: bytes, fetch_s: float, file: File, wish: Wish[T]
    ) -> tuple[T, ...]:
        if is_pdf(data):
            return await self._documents.load(data, file.pages, fetch_s, wish)
        if len(data) > self.config.max_bytes:
            raise too_many_bytes(self.config)
        wanted(file.pages, 1, wish.param)
        wish.budget.take_images(1)
        return await self._decoded(data, fetch_s, wish)

    async def _video(self, video: Video, wish: Wish[T]) -> tuple[T, ...]:
        """The frames of a video, when it is its turn."""
        if video.url.startswith(SCHEME):
            return self._videos.named(video, wish)
        self._videos.check()
        if is_data_url(video.url):
            async with self._videos.turn():
                data = await self._inside(video.url, self._video_config, wish.budget)
                return await self._videos.load(data, video, 0.0, wish)
        with self._downloads.counted(wish.budget) as take:
            data, took_s = await self._fetched(video.url, take, self._video_fetcher)
            async with self._videos.turn():
                return await self._videos.load(data, video, took_s, wish)

    async def _decoded(self, source: str | bytes, fetch_s: float, wish: Wish[T]) -> tuple[T, ...]:
        async with self._decodes.turn():
            in_thread = asyncio.get_running_loop().run_in_executor
            sent = await in_thread(self._threads, _read, source, self.config, wish.budget)
            if (found := wish.found(sent.digest)) is not None:
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
