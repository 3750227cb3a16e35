"""Preprocessed images, kept so that a client may name one by its content, not send it again.

`image_url.url = "sha256:<hex>"` stands for an image whose encoded bytes have that digest and were
sent before, in the same detail. Who knows the digest of an image has had the image, so this tells
nobody anything. The least recently used go first. One event loop; knows nothing about decoding.
"""

import re
from collections import OrderedDict

from lookm.models.detail import Detail
from lookm.types import ImageInput
from server.api_errors import ApiError

SCHEME = "sha256:"
PLAIN = Detail()
_HEX = re.compile(r"[0-9a-f]{64}")


def is_named(url: str) -> bool:
    """Whether a URL names an image by its digest."""
    return url.startswith(SCHEME)


class ImageCache:
    """At most `max_bytes` of tensors, by the digest of an image's bytes and its detail."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._images: OrderedDict[str, ImageInput] = OrderedDict()

    def get(self, digest: str, detail: Detail = PLAIN) -> ImageInput | None:
        """The image, which is now the most recently used; None where it is gone.

        One that was seen without a budget and kept to it all the same is what a budget asks for.
        """
        found = self._get(_key(digest, detail))
        if found is None and detail.level == "auto":
            plain = self._get(digest)
            found = plain if plain is not None and detail.keeps(plain.num_tokens) else None
        return found

    def _get(self, key: str) -> ImageInput | None:
        if key in self._images:
            self._images.move_to_end(key)
        return self._images.get(key)

    def named(self, url: str, param: str, detail: Detail = PLAIN) -> ImageInput:
        """The image that a `sha256:` URL names. Raises `ApiError`."""
        digest = url.removeprefix(SCHEME).lower()
        if not _HEX.fullmatch(digest):
            message = "'sha256:' is followed by the 64 hex digits of the image's SHA-256."
            raise ApiError("invalid_image_url", message, param=param)
        found = self.get(digest, detail)
        if found is None:
            message = (
                "This server does not have the image in this detail (any more), or another replica "
                "got it: send it again, as a data or https URL."
            )
            raise ApiError("image_not_found", message, param=param)
        return found

    def put(self, image: ImageInput, digest: str = "", detail: Detail = PLAIN) -> None:
        """Keep an image of bytes of that digest (else its own) for such a detail, and drop others
        to stay within the bound.

        Where the detail changed nothing, it is also what those get who ask for none.
        """
        digest = digest or image.digest
        for key in {_key(digest, detail), *((digest,) if image.digest == digest else ())}:
            if key not in self._images and image.size_bytes <= self._max_bytes:
                self._images[key] = image
                self._held_bytes += image.size_bytes
        while self._held_bytes > self._max_bytes:
            _, dropped = self._images.popitem(last=False)
            self._held_bytes -= dropped.size_bytes


def _key(digest: str, detail: Detail) -> str:
    return f"{digest}/{detail.name}" if detail.name else digest
