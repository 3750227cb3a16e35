"""Images that the worker has already are not sent again: a later turn names them by their digest.

Both sides read the same messages in the same order, and the API's decides: it counts what the
worker holds, and tells it what to forget. Nothing is asked, and nothing can be missing.

    SentImages, in the API    Add(images with tensors) -> Add(images without, where they were sent)
    KnownImages, in the worker           the other way round

A worker starts with nothing, so each has a new pair.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lookm.types import ImageInput, Request
from server.worker import wire


class SentImages:
    """The API's side: what the worker holds, at most `max_bytes` of it between messages."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._size_of: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def lighter(self, messages: Sequence[wire.Up]) -> Iterator[wire.Up]:
        """The messages without what the worker has, and what it is to forget then."""
        for message in wire.joined(messages):
            match message:
                case wire.Add(request):
                    yield wire.Add(self._lighter(request))
                case wire.Together(requests):
                    yield wire.Together(tuple(self._lighter(request) for request in requests))
                case _:
                    yield message
            forgotten = tuple(self._to_forget())
            if forgotten:
                yield wire.Forget(forgotten)

    def _lighter(self, request: Request) -> Request:
        if not request.images:
            return request
        return replace(request, images=tuple(self._sent(image) for image in request.images))

    def _sent(self, image: ImageInput) -> ImageInput:
        if not image.tensors:
            return image
        if image.digest in self._size_of:
            self._size_of.move_to_end(image.digest)
            return replace(image, tensors={})
        self._size_of[image.digest] = image.size_bytes
        self._held_bytes += image.size_bytes
        return image

    def _to_forget(self) -> Iterator[str]:
        while self._held_bytes > self._max_bytes:
            digest, size_bytes = self._size_of.popitem(last=False)
            self._held_bytes -= size_bytes
            yield digest


class KnownImages:
    """The worker's side: images by digest, until it is told to forget them."""

    def __init__(self) -> None:
        self._images: dict[str, ImageInput] = {}

    def whole(self, request: Request) -> Request:
        """The request as the API had it."""
        if not request.images:
            return request
        for image in request.images:
            if image.tensors:
                self._images[image.digest] = image
        images = (self._images.get(image.digest, image) for image in request.images)
        return replace(request, images=tuple(images))

    def forget(self, message: wire.Forget) -> None:
        """Let go of these."""
        for digest in message.digests:
            del self._images[digest]
