"""A PNG without the metadata that no picture needs. Pure.

Pillow unpacks colour profiles and texts when it opens a PNG, and refuses those that unpack to more
than a megabyte; here only what shows pixels, and how the camera was held, is left.
"""

import zlib
from collections.abc import Iterator

SIGNATURE_BYTES = 8
NEEDED = frozenset(
    (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf")
)
# Where older programs say how the camera was held.
ORIENTATION = {
    b"tEXt": (b"Raw profile type exif\0", b"Raw profile type APP1\0"),
    b"zTXt": (b"Raw profile type exif\0\0", b"Raw profile type APP1\0\0"),
    b"iTXt": (b"XML:com.adobe.xmp\0\0",),  # the second zero: it is not packed
}
MAX_TEXT_BYTES = 2**18


def without_metadata(data: bytes) -> bytes:
    """The same picture. What is no chunk is left as it is, for the decoder to refuse."""
    return data[:SIGNATURE_BYTES] + b"".join(_needed(data))


def _needed(data: bytes) -> Iterator[bytes]:
    at, view = SIGNATURE_BYTES, memoryview(data)
    while at < len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in NEEDED or end > len(data) or _tells_orientation(kind, view[at + 8 : end - 4]):
            yield bytes(view[at:end])
        at = end


def _tells_orientation(kind: bytes, body: memoryview) -> bool:
    beginnings = ORIENTATION.get(kind, ())
    head = bytes(body[:64])
    beginning = next((each for each in beginnings if head.startswith(each)), None)
    if beginning is None or len(body) > MAX_TEXT_BYTES:
        return False
    return kind != b"zTXt" or _unpacks(bytes(body[len(beginning) :]))


def _unpacks(packed: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES)) < MAX_TEXT_BYTES
    except zlib.error:
        return False
