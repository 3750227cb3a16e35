"""From the parts of messages to pictures that the model can take.

    Part --media_part--> MediaPart --load_all--> LoadedImage --preprocess--> Picture

A part gives any number of pictures, each with the text that stands before it: an `image_url` is one
without text, a document its pages with their numbers, a `video_url` its frames with their times. A
kind of part is one case of `media_part` and of `_source` here, and what `server.media` makes of its
bytes. Images are fetched and decoded there, each is preprocessed in a thread pool before the next
takes its place in memory, never on the event loop. Knows parts and URLs; nothing about templates
(`template` puts the pictures into them).
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
from server.openai.request.documents import Document, as_file, located
from server.openai.request.image_cache import ImageCache, is_named
from server.openai.request.pools import Pools
from server.openai.schemas.files import FilePart
from server.openai.schemas.requests import ImagePart, Message, Part, RefusalPart
from server.openai.schemas.video import VideoPart

Place = tuple[int, int]  # the index of a message, and of the part in it


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A part that gives pictures: where it stands, what errors call it, where its bytes are, and
    how that is meant."""

    place: Place
    param: str
    url: str
    way: Document | Video | None = None  # None: it is a picture's URL


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as the model takes it, and the text that stands before it, if any."""

    image: ImageInput
    label: str | None = None


Pictures = tuple[Picture, ...]


def media_parts(messages: Sequence[Message]) -> list[MediaPart]:
    """Every part that gives pictures, in the order in which the model sees them."""
    return [
        found
        for m, message in enumerate(messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content or ())
        if (found := media_part(part, (m, p))) is not None
    ]


def media_part(part: Part | FilePart | RefusalPart, place: Place) -> MediaPart | None:
    """The part, if it is of a kind that gives pictures."""
    at = "messages[{}].content[{}]".format(*place)
    match part:
        case ImagePart(image_url=sent):
            url = sent.url.strip()  # browsers, too, take an address without its white space
            return MediaPart(place, f"{at}.image_url.url", url)
        case VideoPart(video_url=sent):
            url = sent.url.strip()
            video = Video(url, sent.fps, sent.max_frames)
            return MediaPart(place, f"{at}.video_url.url", url, video)
        case FilePart():
            field, url, document = located(part)
            return MediaPart(place, f"{at}.{field}", url, document)
    return None


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
    max_frames: int  # of a video where the request does not say

    async def load(self, parts: Sequence[MediaPart]) -> dict[Place, Pictures]:
        """The pictures of each part. Raises `ApiError`, `MediaError`: one failure ends them all."""
        self._check_number(len(parts))  # each gives one at least: nothing is fetched for too many
        unique, indices = distinct(parts)
        room = _Room(self.max_tokens)
        by_name = [part for part in unique if part.way is None and is_named(part.url)]
        named = {part.param: self._named(part, room) for part in by_name}
        sent = [part for part in unique if part.param not in named]
        params = [part.param for part in sent]
        try:
            sources = [self._source(part) for part in sent]
            preprocess = partial(self._preprocess, room)
            loaded = await self.media.load_all(
                sources, params, preprocess, partial(self._known, room)
            )
        except MediaError as error:
            self.metrics.increase("lookm_images_refused_total", reason=error.code)
            raise
        found: dict[str, Sequence[Picture]] = named | dict(zip(params, loaded, strict=True))
        pictures = [tuple(found[part.param]) for part in unique]
        self._check_number(sum(len(pictures[n]) for n in indices))
        return {part.place: pictures[n] for part, n in zip(parts, indices, strict=True)}

    def _named(self, part: MediaPart, room: "_Room") -> Pictures:
        return (room.take(Picture(self.cache.named(part.url, part.param))),)

    def _source(self, part: MediaPart) -> Source:
        """What the loader takes."""
        match part.way:
            case Document() as document:
                return as_file(part.url, document, part.param, self.files)
            case Video() as video:
                max_frames = video.max_frames or min(self.max_frames, self.max_images)
                return replace(video, max_frames=max_frames)
            case None:
                return part.url

    def _check_number(self, num_pictures: int) -> None:
        if num_pictures > self.max_images:
            message = f"The request has {num_pictures} images; {self.max_images} are allowed."
            raise ApiError("invalid_value", message, param="messages")

    def _known(self, room: "_Room", digest: str, label: str | None = None, /) -> Picture | None:
        """A picture that was sent before, by the digest of its bytes."""
        image = self.cache.get(digest)
        return None if image is None else room.take(Picture(image, label))

    async def _preprocess(self, room: "_Room", loaded: LoadedImage) -> Picture:
        if loaded.fetch_s:
            self.metrics.observe("lookm_media_fetch_seconds", loaded.fetch_s)
        self.metrics.observe("lookm_media_decode_seconds", loaded.decode_s)
        if (known := self.cache.get(loaded.digest)) is not None:
            return room.take(Picture(known, loaded.label))  # the same picture came twice at once
        try:
            with self.metrics.time("lookm_media_preprocess_seconds"):
                image = await self.pools.image(
                    lambda: self.processor.image(
                        loaded.image, loaded.digest, (loaded.width, loaded.height)
                    )
                )
        except LookmError as error:
            raise to_api_error(error, param=loaded.param) from error
        self.cache.put(image)
        return room.take(Picture(image, loaded.label))


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


def frames_that_fit(processor: ChatProcessor, max_tokens: int) -> int:
    """How many frames of a video are taken where the request does not say: no more than fill three
    quarters of the context. Takes a while: one of a usual shape is preprocessed."""
    video = VideoConfig()
    width = int((video.frame_pixels * 16 / 9) ** 0.5)
    frame = Image.new("RGB", (width, video.frame_pixels // width))
    num_tokens = least_tokens(processor.image(frame, "a frame"))
    return max(1, min(video.max_frames, 3 * max_tokens // 4 // max(1, num_tokens)))


def distinct(parts: Sequence[MediaPart]) -> tuple[list[MediaPart], list[int]]:
    """Each URL, as it is meant, once, and for each part which of them it has.

    Not a dict by URL: hashing 150 MB of them would hold up the event loop for 50 ms.
    """
    unique: list[MediaPart] = []
    indices: list[int] = []
    alike: dict[tuple[int, str], list[int]] = {}
    for part in parts:
        candidates = alike.setdefault((len(part.url), part.url[-64:]), [])
        alikes = (i for i in candidates if unique[i].way == part.way)
        index = next((i for i in alikes if unique[i].url == part.url), len(unique))
        if index == len(unique):
            unique.append(part)
            candidates.append(index)
        indices.append(index)
    return unique, indices
