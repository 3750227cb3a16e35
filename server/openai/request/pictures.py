"""From the parts of messages to pictures that the model can take.

    Part --media_part--> MediaPart --load_all--> LoadedImage --preprocess--> Picture

A part gives any number of pictures, each with the text that stands before it: an `image_url` is one
without text; of a document it would be each page, of a video each frame. A kind of part is one case
of `media_part` here, and what `server.media` makes of its bytes. Images are fetched and decoded
there, each is preprocessed in a thread pool before the next takes its place in memory, never on the
event loop. Knows parts and URLs; nothing about templates (`template` puts the pictures into them).
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from lookm.errors import LookmError, PromptTooLongError
from lookm.models.detail import Detail
from lookm.types import ImageInput
from server.api_errors import ApiError, to_api_error
from server.media import LoadedImage, MediaError
from server.metrics import Metrics
from server.openai.protocols import ChatProcessor, ImageLoader
from server.openai.request.image_cache import ImageCache, is_named
from server.openai.request.pools import Pools
from server.openai.schemas.images import ImagePart, ImageUrl
from server.openai.schemas.requests import Message, Part, RefusalPart

PLAIN = Detail()
Place = tuple[int, int]  # the index of a message, and of the part in it


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A part that gives pictures: where it stands, what errors call it, where its bytes are, and
    how finely they are seen."""

    place: Place
    param: str
    url: str
    detail: Detail = PLAIN


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


def media_part(part: Part | RefusalPart, place: Place) -> MediaPart | None:
    """The part, if it is of a kind that gives pictures."""
    if isinstance(part, ImagePart):
        m, p = place
        url = part.image_url.url.strip()  # browsers, too, take an address without its white space
        param = f"messages[{m}].content[{p}].image_url.url"
        return MediaPart(place, param, url, detail_of(part.image_url))
    return None


def detail_of(image_url: ImageUrl) -> Detail:
    """What a part asks for; `original` is as fine as can be."""
    level = image_url.detail or "auto"
    return Detail("high" if level == "original" else level, image_url.max_tokens_per_image)


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
    max_images: int
    max_tokens: int

    async def load(self, parts: Sequence[MediaPart]) -> dict[Place, Pictures]:
        """The pictures of each part. Raises `ApiError`, `MediaError`: one failure ends them all."""
        self._check_number(len(parts))  # each gives one at least: nothing is fetched for too many
        self._check_budgets(parts)
        unique, indices = distinct(parts)
        room = _Room(self.max_tokens, self.processor)
        named = {p.param: self._named(p, room) for p in unique if is_named(p.url)}
        sent = [part for part in unique if part.param not in named]
        params = [part.param for part in sent]
        try:
            urls = [part.url for part in sent]
            details = {part.param: part.detail for part in sent}
            preprocess = partial(self._preprocess, room, details)
            known = partial(self._known, room, set(details.values()))
            loaded = await self.media.load_all(urls, params, preprocess, known)
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

    def _check_number(self, num_pictures: int) -> None:
        if num_pictures > self.max_images:
            message = f"The request has {num_pictures} images; {self.max_images} are allowed."
            raise ApiError("invalid_value", message, param="messages")

    def _known(self, room: "_Room", details: Set[Detail], digest: str) -> Picture | None:
        """A picture that was sent before, by the digest of its bytes: of a request whose images are
        all asked for in one detail. Of others it is found when it is decoded."""
        image = self.cache.get(digest, *details) if len(details) == 1 else None
        return None if image is None else room.take(Picture(image))

    async def _preprocess(
        self, room: "_Room", details: Mapping[str, Detail], loaded: LoadedImage
    ) -> Picture:
        detail = details.get(loaded.param or "", PLAIN)
        if loaded.fetch_s:
            self.metrics.observe("lookm_media_fetch_seconds", loaded.fetch_s)
        self.metrics.observe("lookm_media_decode_seconds", loaded.decode_s)
        if (known := self.cache.get(loaded.digest, detail)) is not None:
            return room.take(Picture(known, loaded.label))  # the same picture came twice at once
        try:
            with self.metrics.time("lookm_media_preprocess_seconds"):
                image = await self.pools.image(
                    lambda: self.processor.image(
                        loaded.image, loaded.digest, (loaded.width, loaded.height), detail
                    )
                )
        except LookmError as error:
            raise _refused(error, loaded.param or "") from error
        self.cache.put(image, loaded.digest, detail)
        return room.take(Picture(image, loaded.label))


@dataclass(slots=True)
class _Room:
    """What the pictures of one request have left of the context."""

    max_tokens: int
    processor: ChatProcessor
    num_tokens: int = 0

    def take(self, picture: Picture) -> Picture:
        """One more, alone or among others. Raises `PromptTooLongError` where all do not fit."""
        count, image = self.processor.tokens_per_image, picture.image
        self.num_tokens += min(*count([image]), *count([image, image]))
        if self.num_tokens > self.max_tokens:
            raise PromptTooLongError(
                f"The images have {self.num_tokens} tokens or more and the model's context is "
                f"{self.max_tokens}: send fewer or smaller ones.",
                param="messages",
            )
        return picture


def _refused(error: LookmError, param: str) -> ApiError:
    """The error, which may name a field beside the image's URL."""
    if error.param is None:
        return to_api_error(error, param=param)
    shown = to_api_error(error)
    return ApiError(shown.code, shown.message, param=f"{param.rpartition('.')[0]}.{error.param}")


def distinct(parts: Sequence[MediaPart]) -> tuple[list[MediaPart], list[int]]:
    """Each URL in each detail once, and for each part which of them it has.

    Not a dict by URL: hashing 150 MB of them would hold up the event loop for 50 ms.
    """
    unique: list[MediaPart] = []
    indices: list[int] = []
    alike: dict[tuple[int, str], list[int]] = {}
    for part in parts:
        candidates = alike.setdefault((len(part.url), part.url[-64:]), [])
        same = (i for i in candidates if unique[i].detail == part.detail)
        index = next((i for i in same if unique[i].url == part.url), len(unique))
        if index == len(unique):
            unique.append(part)
            candidates.append(index)
        indices.append(index)
    return unique, indices
