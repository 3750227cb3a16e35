"""Videos of a request: frames of it, in their order, as pictures with their times.

    bytes -> which container, is it all there -> its packets' times (`sandbox`, nothing is decoded)
    -> which frames, not more than a request may have -> known? else decoded (`sandbox`), each while
    the one before is used

A frame's digest is of the video's, its time and its size: a video that comes again is not read, as
long as `known` remembers its frames, and `sha256:` and its digest may stand for it. Sound is not
read. Knows the order of these steps and their limits; how a video is read, `video_frames` knows,
and which frames are looked at, `video_times`.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from PIL import Image

from server.media.budget import Memory
from server.media.config import MediaConfig
from server.media.containers import container_of
from server.media.loaded import LoadedImage, T, Wish
from server.media.media_error import MediaError
from server.media.sandbox import Order, Sandbox
from server.media.video_times import labels
from server.turns import Turns

INSTALL = "pip install 'lookm-server[video]'"
# What a decoder holds of frames as they are stored: 16 that others refer to, those it puts into
# order, the one it is at.
HELD_FRAMES = 24
KEPT_BYTES = 14  # of each pixel of the result: scaled, as Pillow holds it, turned, and as bytes
FIXED_BYTES = 64 * 2**20  # scalers and a codec's tables, whatever the size
WHAT = "The video"
SCHEME = "sha256:"
HEX = re.compile(r"[0-9a-f]{64}")
MAX_REMEMBERED = 512  # videos, each sampled in one way, whose frames' times are known


def reads_video() -> bool:
    """Whether the extra is installed that it takes."""
    return find_spec("av") is not None


def video_config(config: MediaConfig) -> MediaConfig:
    """For the bytes of videos, and their download."""
    timeout_s = max(config.video.fetch_timeout_s, config.fetch_timeout_s)
    return replace(config, max_bytes=config.video.max_bytes, fetch_timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class Video:
    """A video of a request, and how it is sampled; None: as the server does by itself."""

    url: str = field(repr=False)
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Looked:
    """A video, by its digest, and what `look` found in it."""

    digest: str
    facts: Mapping[str, Any]

    @property
    def times(self) -> Sequence[int]:
        """In the stream's own units."""
        return [time for time, _ in self.facts["frames"]]

    @property
    def kept(self) -> tuple[int, int]:
        """The size of each frame as it is kept, before it is turned."""
        width, height = self.facts["kept"]
        return width, height

    @property
    def num_kept(self) -> int:
        """Pixels of each frame as it is kept."""
        return self.kept[0] * self.kept[1]

    @property
    def cost_bytes(self) -> int:
        """What decoding it may take."""
        stored_bytes = int(self.facts["stored_pixels"] * self.facts["bits_per_pixel"]) // 8
        return FIXED_BYTES + HELD_FRAMES * stored_bytes + KEPT_BYTES * self.num_kept

    def frames(self) -> list[tuple[str, str]]:
        """A name for each, as SHA-256 is one for a picture that was sent alone, and a label."""
        size = "{}x{}".format(*self.kept)
        named = (f"frame at {time} of {self.digest}, {size}" for time in self.times)
        digests = [hashlib.sha256(each.encode()).hexdigest() for each in named]
        return list(zip(digests, labels([t for _, t in self.facts["frames"]]), strict=True))


class Videos:
    """Decodes videos, in turns of their own, with the memory and the processes of pictures."""

    def __init__(self, config: MediaConfig, memory: Memory, sandbox: Sandbox) -> None:
        self._config = config
        self._memory = memory
        self._sandbox = sandbox
        self._turns = Turns(config.max_videos)
        self._looked: OrderedDict[tuple[str, Video], _Looked] = OrderedDict()

    def check(self) -> None:
        """Raises `MediaError` where there is nothing that decodes."""
        if not reads_video():
            message = f"This server does not read videos; with an extra it does: {INSTALL}."
            raise MediaError("unsupported_video", message)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """To be held while a video's bytes are read and it is decoded."""
        return self._turns.turn()

    def named(self, video: Video, wish: Wish[T]) -> tuple[T, ...]:
        """The frames of one that was sent before. Raises `MediaError` where one is forgotten."""
        digest = video.url.removeprefix(SCHEME).lower()
        if not HEX.fullmatch(digest):
            message = "'sha256:' is followed by the 64 hex digits of the video's SHA-256."
            raise MediaError("invalid_video_url", message)
        looked = self._remembered(digest, video)
        if looked is not None:
            wish.budget.take_images(len(looked.times))
            found = [wish.found(*frame) for frame in looked.frames()]
            known = tuple(each for each in found if each is not None)
            if len(known) == len(found):
                return known
        raise MediaError(
            "video_not_found",
            "This video, sampled like this, is not cached (any more): send it again, as a data or "
            "https URL.",
        )

    async def load(self, data: bytes, video: Video, fetch_s: float, wish: Wish[T]) -> tuple[T, ...]:
        """What the wish makes of each frame. Raises `MediaError`, or what `use` raises."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        looked = self._remembered(digest, video)
        looked = looked or _Looked(digest, await self._look(data, video))
        wish.budget.take_images(len(looked.times))
        wish.budget.take_pixels(len(looked.times) * looked.num_kept)
        self._remember(looked, video)
        frames = looked.frames()
        made = {n: wish.found(*frame) for n, frame in enumerate(frames)}
        missing = [n for n, found in made.items() if found is None]
        if missing:
            order = self._order(looked, missing, len(data))
            async with (
                self._memory.hold(order.cost_bytes),
                aclosing(self._sandbox.each(order, data)) as answers,
            ):
                for n in missing:
                    begun_s = time.perf_counter()
                    facts, pixels = await anext(answers)
                    loaded = LoadedImage(
                        image=Image.frombytes("RGB", tuple(facts["kept"]), pixels),
                        digest=frames[n][0],
                        width=looked.facts["size"][0],
                        height=looked.facts["size"][1],
                        num_bytes=len(data),
                        fetch_s=fetch_s if n == missing[0] else 0.0,
                        decode_s=time.perf_counter() - begun_s,
                        label=frames[n][1],
                        param=wish.param,
                    )
                    del pixels
                    made[n] = await wish.use(loaded)
                await anext(answers, None)  # it has ended, and may have another job
        return tuple(found for found in made.values() if found is not None)

    def _remembered(self, digest: str, video: Video) -> _Looked | None:
        key = (digest, replace(video, url=""))
        if key in self._looked:
            self._looked.move_to_end(key)
        return self._looked.get(key)

    def _remember(self, looked: _Looked, video: Video) -> None:
        self._looked[looked.digest, replace(video, url="")] = looked
        if len(self._looked) > MAX_REMEMBERED:
            self._looked.popitem(last=False)

    async def _look(self, data: bytes, video: Video) -> dict[str, Any]:
        """The facts of `video_frames.look`, within limits whatever a decoder was made to say."""
        limits = self._config.video
        max_frames = video.max_frames or min(limits.max_frames, self._config.max_request_images)
        options = {
            "container": container_of(data),
            "fps": video.fps or limits.fps,
            "max_frames": max_frames,
            "max_pixels": limits.max_pixels,
            "max_aspect": self._config.max_aspect,
            "max_s": limits.max_s,
            "max_packets": limits.max_packets,
            "frame_pixels": limits.frame_pixels,
        }
        bounds = (limits.look_bytes, limits.cpu_s, limits.limit_s, WHAT)
        async with self._memory.hold(limits.look_bytes + len(data)):
            facts, _ = await self._sandbox.run(Order("video_look", options, *bounds), data)
        width, height = facts["kept"]
        assert 0 < len(facts["frames"]) <= max_frames
        assert 0 < width * height <= limits.frame_pixels
        return facts

    def _order(self, looked: _Looked, missing: Sequence[int], num_bytes: int) -> Order:
        limits = self._config.video
        options = {
            "container": looked.facts["container"],
            "kept": looked.kept,
            "times": [looked.times[n] for n in missing],
            "max_pixels": limits.max_pixels,
            "max_packets": limits.max_packets,
        }
        bounds = (looked.cost_bytes + num_bytes, limits.cpu_s, limits.limit_s, WHAT)
        return Order("video_frames", options, *bounds)
