"""Which container a video comes in, and whether the file is all there, by its own sizes. Pure.

FFmpeg reads dozens of formats, some of which name other files to open: it is told which one this is
and asked about no other. It also plays what is left of a file that was cut off; here a file that
says it is longer than it is is refused, as a truncated picture is. (A WebM that was written live
does not say how long it is.)
"""

import struct

from server.media.media_error import MediaError

SUPPORTED = "Send MP4, MOV, WebM, MKV or AVI."
# The first boxes of MP4 and its relatives; old QuickTime files begin with any of the others.
FIRST_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"))
EBML = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"
STILL_BRANDS = frozenset((b"heic", b"heix", b"mif1", b"avif"))
MAX_BOXES = 10_000


def container_of(data: bytes) -> str:
    """FFmpeg's name of the container. Raises `MediaError` for others and for what is cut off."""
    if not data:
        raise MediaError("invalid_video", "The video has no bytes.")
    if data[4:8] in FIRST_BOXES and data[8:12] not in STILL_BRANDS:
        return _whole("mov", _mov_bytes(data), data)
    if data.startswith(EBML):
        return _whole("matroska", _matroska_bytes(data), data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _whole("avi", 8 + int.from_bytes(data[4:8], "little"), data)
    raise MediaError("unsupported_video", f"The bytes are no video we know. {SUPPORTED}")


def _whole(name: str, num_bytes: int, data: bytes) -> str:
    if num_bytes > len(data):
        raise MediaError("invalid_video", "The video is truncated. Send all of it.")
    return name


def _mov_bytes(data: bytes) -> int:
    """Where the last box ends: length, name; or length 1, name, length in 64 bits; 0: the rest."""
    at = 0
    for _ in range(MAX_BOXES):
        if at + 8 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, at + 8)
        if length < 8:
            break
        at += length
    return at


def _matroska_bytes(data: bytes) -> int:
    """Where the segment ends: a header element, then the segment with its length, if it has one."""
    length, at = _ebml_length(data, len(EBML))
    at += length or 0
    if data[at : at + 4] != SEGMENT:  # something stands between: FFmpeg will look
        return 0
    length, at = _ebml_length(data, at + 4)
    return at + (length or 0)


def _ebml_length(data: bytes, at: int) -> tuple[int | None, int]:
    """A length at its place, None where it says that it is unknown; and the place after it.

    As many leading zeros as bytes follow the first: `40 02` is 2, `1F FF FF FF` is unknown.
    """
    first = data[at] if at < len(data) else 0
    num_bytes = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + num_bytes], "big") & ((1 << 7 * num_bytes) - 1)
    unknown = value == (1 << 7 * num_bytes) - 1
    return None if unknown else value, at + num_bytes
