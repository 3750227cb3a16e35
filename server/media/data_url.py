"""Reads `data:image/png;base64,...` (RFC 2397). Pure.

Base64 only, in the standard alphabet and with its padding. ASCII white space inside is dropped, as
browsers do (the `base64` tool wraps its lines); percent-encoding and the URL-safe alphabet are
refused, with the fix. The media type is not trusted and not even read: `decode` looks at the bytes.
"""

import binascii

from server.media.budget import Budget
from server.media.config import MediaConfig
from server.media.fetch import too_many_bytes
from server.media.media_error import MediaError

MAX_HEAD_CHARS = 256
WHITE_SPACE = b" \t\r\n\f"


def is_data_url(text: str) -> bool:
    """Whether this is for us, whatever the case of its scheme."""
    return text[:5].lower() == "data:"


def read_data_url(text: str, config: MediaConfig, budget: Budget) -> bytes:
    """The bytes inside. Raises `MediaError`."""
    comma = text.find(",", 0, MAX_HEAD_CHARS)
    if comma < 0 or not text[:comma].lower().endswith(";base64"):
        raise _invalid("A data: URL must read data:image/png;base64,<data>.")
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
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error:
        pass
    try:
        return binascii.a2b_base64(encoded.translate(None, WHITE_SPACE), strict_mode=True)
    except binascii.Error as error:
        raise _not_base64() from error


def _not_base64() -> MediaError:
    return _invalid(
        "The data: URL is not valid base64. Use the standard alphabet (A-Z a-z 0-9 + /) with its "
        "padding, and do not percent-encode it."
    )


def _invalid(message: str) -> MediaError:
    return MediaError("invalid_image_url", message)
