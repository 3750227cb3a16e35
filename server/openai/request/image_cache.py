"""Preprocessed images, kept so that a client may name one by its content, not send it again.

`image_url.url = "sha256:<hex>"` stands for an image whose encoded bytes have that digest and were
sent before. Who knows the digest of an image has had the image, so this tells nobody anything. The
least recently used go first. One event loop; knows nothing about decoding.
"""

import re
from collections import OrderedDict

from lookm.types import ImageInput
from server.api_errors import ApiError

SCHEME = "sha256:"
_HEX = re.compile(r"[0-9a-f]{64}")


def is_named(url: str) -> bool:
    """Whether a URL names an image by its digest."""
    return url.startswith(SCHEME)


class ImageCache:
    """At most `max_bytes` of tensors, by digest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._images: OrderedDict[str, ImageInput] = OrderedDict()

    def get(self, digest: str) -> ImageInput | None:
        """The image, which is now the most recently used; None where it is gone."""
        if digest in self._images:
            self._images.move_to_end(digest)
        return self._images.get(digest)

    def named(self, url: str, param: str) -> ImageInput:
        """The image that a `sha256:` URL names. Raises `ApiError`."""
        digest = url.removeprefix(SCHEME).lower()
        if not _HEX.fullmatch(digest):
            message = "'sha256:' is followed by the 64 hex digits of the image's SHA-256."
            raise ApiError("invalid_image_url", message, param=param)
        found = self.get(digest)
        if found is None:
            message = (
                "This server does not have the image (any more), or another replica got it: send "
                "it again, as a data or https URL."
            )
            raise ApiError("image_not_found", message, param=param)
        return found

    def put(self, image: ImageInput) -> None:
        """Keep an image, and drop others to stay within the bound."""
        if image.digest in self._images or image.size_bytes > self._max_bytes:
            return
        self._images[image.digest] = image
        self._held_bytes += image.size_bytes
        while self._held_bytes > self._max_bytes:
            _, dropped = self._images.popitem(last=False)
            self._held_bytes -= dropped.size_bytes
