"""The parts of messages that give pictures, each as one value, whatever its kind.

A part gives any number of pictures, each with the text that stands before it: an `image_url` is one
without text, a `file` the pages of a document with their numbers, a `video_url` its frames with
their times. A kind of part is one case of `media_part`. Knows parts and URLs; loads nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lookm.models.detail import Detail
from server.media import Video
from server.openai.request.documents import Document, located
from server.openai.schemas.files import FileContent, FilePart
from server.openai.schemas.images import ImagePart, ImageUrl
from server.openai.schemas.requests import Message, Part, RefusalPart
from server.openai.schemas.video import VideoPart, VideoUrl

PLAIN = Detail()
Place = tuple[int, int]  # the index of a message, and of the part in it


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A part that gives pictures: where it stands, what errors call it, where its bytes are, how
    finely its pictures are seen, and how its URL is meant (None: it is a picture's)."""

    place: Place
    param: str
    url: str
    detail: Detail = PLAIN
    way: Document | Video | None = None


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
            return MediaPart(place, f"{at}.image_url.url", url, detail_of(sent))
        case VideoPart(video_url=sent):
            url = sent.url.strip()
            video = Video(url, sent.fps, sent.max_frames)
            return MediaPart(place, f"{at}.video_url.url", url, detail_of(sent), video)
        case FilePart():
            field, url, document = located(part)
            return MediaPart(place, f"{at}.{field}", url, detail_of(part.file), document)
    return None


def detail_of(sent: ImageUrl | VideoUrl | FileContent) -> Detail:
    """What a part asks for; `original` is as fine as can be."""
    level = sent.detail or "auto"
    return Detail("high" if level == "original" else level, sent.max_tokens_per_image)


def distinct(parts: Sequence[MediaPart]) -> tuple[list[MediaPart], list[int]]:
    """Each URL, as it is meant and in each detail, once, and for each part which of them it has.

    Not a dict by URL: hashing 150 MB of them would hold up the event loop for 50 ms.
    """
    unique: list[MediaPart] = []
    indices: list[int] = []
    alike: dict[tuple[int, str], list[int]] = {}
    for part in parts:
        candidates = alike.setdefault((len(part.url), part.url[-64:]), [])
        index = next((i for i in candidates if _alike(unique[i], part)), len(unique))
        if index == len(unique):
            unique.append(part)
            candidates.append(index)
        indices.append(index)
    return unique, indices


def _alike(one: MediaPart, other: MediaPart) -> bool:
    return one.detail == other.detail and one.way == other.way and one.url == other.url
