"""From the parts of messages to pictures that the model can take.

    Part --media_parts--> MediaPart --load_all--> LoadedImage --preprocess--> Picture

A kind of part is one case of `media_parts.media_part` and of `_source` here, and what
`server.media` makes of its bytes. Images are fetched and decoded there, each is preprocessed in a
thread pool before the next takes its place in memory, never on the event loop. Knows nothing about
templates (`template` puts the pictures into them).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from lookm.errors import LookmError, PromptTooLongError
from lookm.models.image_layouts import least_tokens
from lookm.types import ImageInput
from server.api_errors import ApiError, to_api_error
from server.file_store import FileStore
from server.media import LoadedImage, MediaError, Source, Video
from server.media.config import VideoConfig
from server.metrics import Metrics
from server.openai.protocols import ChatProcessor, ImageLoader
from server.openai.request.documents import Document, as_file
from server.openai.request.image_cache import ImageCache, is_named
from server.openai.request.media_parts import MediaPart, Place, distinct
from server.openai.request.pools import Pools
from server.stages import stage

Parts = Mapping[str | None, MediaPart]  # by what errors call them


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as the model takes it, and the text that stands before it, if any."""

    image: ImageInput
    label: str | None = None


Pictures = tuple[Picture, ...]


def images_of(pictures: Mapping[Place, Pictures]) -> Iterator[ImageInput]:
    """The images of all parts, in the order in which the model sees them."""
    return (picture.image for place in sorted(pictures) for picture in pictures[place])


@dataclass(frozen=True, slots=True)
class PictureLoader:
    """Loads the pictures of a request: at most `max_images`, each URL once.

    Once those that are prepared fill a context of `max_tokens` no more are: pictures of models with
    native resolution are tens of megabytes each.
    """

    media: ImageLoader
    processor: ChatProcessor
    pools: Pools
    metrics: Metrics
    cache: ImageCache
    files: FileStore
    max_images: int
    max_tokens: int

    async def load(self, parts: Sequence[MediaPart]) -> dict[Place, Pictures]:
        """The pictures of each part. Raises `ApiError`, `MediaError`: one failure ends them all."""
        self._check_number(len(parts))  # each gives one at least: nothing is fetched for too many
        self._check_budgets(parts)
        unique, indices = distinct(parts)
        room = _Room(self.max_tokens)
        by_name = [part for part in unique if part.way is None and is_named(part.url)]
        named = {part.param: self._named(part, room) for part in by_name}
        sent = [part for part in unique if part.param not in named]
        params = [part.param for part in sent]
        asked: Parts = {part.param: part for part in sent}
        try:
            sources = [await self._source(part) for part in sent]
            preprocess = partial(self._preprocess, room, asked)
            known = partial(self._known, room, asked)
            loaded = await self.media.load_all(sources, params, preprocess, known)
        except MediaError as error:
            self.metrics.increase("lookm_images_refused_total", reason=error.code)
            raise
        found: dict[str, Sequence[Picture]] = named | dict(zip(params, loaded, strict=True))
        pictures = [tuple(found[part.param]) for part in unique]
        self._check_number(sum(len(pictures[n]) for n in indices))
        return {part.place: pictures[n] for part, n in zip(parts, indices, strict=True)}

    def _named(self, part: MediaPart, room: "_Room") -> Pictures:
        return (room.take(Picture(self.cache.named(part.url, part.param, part.detail))),)

    def _check_budgets(self, parts: Sequence[MediaPart]) -> None:
        """Raises `ApiError` for one that no image keeps to: before one is fetched."""
        fewest = self.processor.fewest_image_tokens
        for part in parts:
            if not part.detail.keeps(fewest):
                refusal = part.detail.refusal(fewest, "every image of this model")
                raise _refused(refusal, part.param)

    async def _source(self, part: MediaPart) -> Source:
        """What the loader takes."""
        match part.way:
            case Document() as document:
                return as_file(part.url, document, part.param, self.files)
            case Video(max_frames=None) as video:
                return replace(video, max_frames=await self._frames(part))
            case Video() as video:
                return video
            case None:
                return part.url

    async def _frames(self, part: MediaPart) -> int:
        """How many of a video are taken where the part does not say: no more than fill three
        quarters of the context, by one of a usual shape."""
        video = VideoConfig()
        width = int((video.frame_pixels * 16 / 9) ** 0.5)
        size = width, video.frame_pixels // width
        frame = await self._seen(Image.new("RGB", size), "a frame", size, part)
        fit = 3 * self.max_tokens // 4 // max(1, least_tokens(frame))
        return max(1, min(video.max_frames, self.max_images, fit))

    def _check_number(self, num_pictures: int) -> None:
        if num_pictures > self.max_images:
            message = f"The request has {num_pictures} images; {self.max_images} are allowed."
            raise ApiError("invalid_value", message, param="messages")

    def _known(
        self,
        room: "_Room",
        asked: Parts,
        digest: str,
        label: str | None = None,
        param: str | None = None,
        /,
    ) -> Picture | None:
        """A picture that was sent before, by the digest of its bytes, in the detail of its part."""
        image = self.cache.get(digest, asked[param].detail)
        return None if image is None else room.take(Picture(image, label))

    async def _preprocess(self, room: "_Room", asked: Parts, loaded: LoadedImage) -> Picture:
        part, size = asked[loaded.param], (loaded.width, loaded.height)
        if loaded.fetch_s:
            self.metrics.observe("lookm_media_fetch_seconds", loaded.fetch_s)
        self.metrics.observe("lookm_media_decode_seconds", loaded.decode_s)
        if (known := self.cache.get(loaded.digest, part.detail)) is not None:
            return room.take(Picture(known, loaded.label))  # the same picture came twice at once
        with self.metrics.time("lookm_media_preprocess_seconds"), stage("preprocess"):
            image = await self._seen(loaded.image, loaded.digest, size, part)
        self.cache.put(image, loaded.digest, part.detail)
        return room.take(Picture(image, loaded.label))

    async def _seen(
        self, image: Image.Image, digest: str, size: tuple[int, int], part: MediaPart
    ) -> ImageInput:
        """As the part wants it seen. Raises `ApiError`."""
        try:
            return await self.pools.image(
                lambda: self.processor.image(image, digest, size, part.detail)
            )
        except LookmError as error:
            raise _refused(error, part.param) from error


@dataclass(slots=True)
class _Room:
    """What the pictures of one request have left of the context."""

    max_tokens: int
    num_tokens: int = 0

    def take(self, picture: Picture) -> Picture:
        """One more. Raises `PromptTooLongError` where all do not fit."""
        self.num_tokens += least_tokens(picture.image)
        if self.num_tokens > self.max_tokens:
            raise PromptTooLongError(
                f"The images have {self.num_tokens} tokens or more and the model's context is "
                f"{self.max_tokens}: send fewer or smaller ones, of a video fewer frames "
                "(`max_frames`).",
                param="messages",
            )
        return picture


def _refused(error: LookmError, param: str) -> ApiError:
    """The error, which may name a field beside the image's URL."""
    if error.param is None:
        return to_api_error(error, param=param)
    shown = to_api_error(error)
    return ApiError(shown.code, shown.message, param=f"{param.rpartition('.')[0]}.{error.param}")
