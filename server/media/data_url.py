"""Reads `data:image/png;base64,...` (RFC 2397). Pure.

Base64 only, in the standard alphabet or the URL-safe one, with padding or without. ASCII white
space inside is dropped, as browsers do (the `base64` tool wraps its lines); percent-encoding is
refused, with the fix. The media type is not trusted and not even read: `decode` looks at the bytes.
"""

import binascii
import contextlib

from server.media.budget import Budget
from server.media.config import MediaConfig
from server.media.fetch import too_many_bytes
from server.media.media_error import MediaError

MAX_HEAD_CHARS = 256
PIECE_CHARS = 2**20  # a multiple of four
WHITE_SPACE = b" \t\r\n\f"
URL_SAFE = bytes.maketrans(b"-_", b"+/")


def is_data_url(text: str) -> bool:
    """Whether this is for us, whatever the case of its scheme."""
    return text[:5].lower() == "data:"


def read_data_url(text: str, config: MediaConfig, budget: Budget) -> bytes:
    """The bytes inside. Raises `MediaError`."""
    comma = text.find(",", 0, MAX_HEAD_CHARS)
    if comma < 0 or not text[:comma].lower().endswith(";base64"):
        raise _invalid("A data: URL must read data:<type>;base64,<data>.")
    if (len(text) - comma) * 3 // 4 > config.max_bytes * 1.1:  # a tenth for line ends
        raise too_many_bytes(config)
    try:
        encoded = text[comma + 1 :].encode("ascii")
    except UnicodeEncodeError as error:
        raise _not_base64() from error
    data = _decode(encoded)
    if len(data) > config.max_bytes:
        raise too_many_bytes(config)
    budget.take_bytes(len(data))
    return data


def _decode(encoded: bytes) -> bytes:
    with contextlib.suppress(binascii.Error):
        return _strictly(encoded)
    plain = encoded.translate(URL_SAFE, WHITE_SPACE)
    if not plain.endswith(b"="):
        plain += b"=" * (-len(plain) % 4)
    try:
        return _strictly(plain)
    except binascii.Error as error:
        raise _not_base64() from error


def _strictly(encoded: bytes) -> bytes:
    """In pieces, between which others get on: the decoder does not release the interpreter's lock.

    Raises `binascii.Error`; also where a piece ends early, and there are more.
    """
    view, pieces = memoryview(encoded), []
    for at in range(0, len(view), PIECE_CHARS):
        piece = view[at : at + PIECE_CHARS]
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
        if at + PIECE_CHARS < len(view) and len(pieces[-1]) != PIECE_CHARS // 4 * 3:
            raise binascii.Error("padding before the end")
    return b"".join(pieces)


def _not_base64() -> MediaError:
    return _invalid(
        "The data: URL is not valid base64. Its alphabet is A-Z a-z 0-9 + / (or - _), and "
        "it is not percent-encoded."
    )


def _invalid(message: str) -> MediaError:
    return MediaError("invalid_image_url", message)
