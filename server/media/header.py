"""How large a picture says it is, by its first bytes, before any decoder is given them. Pure.

Pillow allocates when it opens a WebP, and unpacks metadata when it opens a PNG; so a picture's cost
is known from here, and `decode` refuses one that its decoder then finds to be of another size.
Every loop is bounded: the bytes were chosen to make it long.
"""

import re
import struct
from dataclasses import dataclass

from server.media.media_error import MediaError

# Every scan of a progressive JPEG is a pass over all pixels and can be a few bytes long; encoders
# write about ten.
MAX_JPEG_SCANS = 100
MAX_BLOCKS = 20_000  # segments of a JPEG, blocks before the first frame of a GIF
MAX_SUB_BLOCKS = 2**16  # before the first frame of a GIF: 16 MB where they are full

START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
# In a scan's data FF 00 is a byte and FF D0 to FF D7 are restarts; other markers end it. Markers
# may be padded, but not `\xff+`: the time would grow with the square of the padding.
SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
PADDING = re.compile(rb"\xff*")


@dataclass(frozen=True, slots=True)
class Header:
    """The size in pixels. `ends`: whether the file has the end that its format asks for."""

    width: int
    height: int
    ends: bool = True


def read_header(name: str, data: bytes) -> Header:
    """The header of a picture of a format that `sniff` names. Raises `MediaError`."""
    try:
        return READERS[name](data)
    except (struct.error, IndexError, ValueError) as error:
        raise damaged(f"The {name} is damaged or truncated. Save and send it again.") from error


def damaged(message: str) -> MediaError:
    """The error for bytes that are not a whole picture."""
    return MediaError("invalid_image", message)


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise damaged("The PNG does not begin with its header. Save and send it again.")
    return Header(*struct.unpack_from(">II", data, 16))


def _bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return Header(width, abs(height))  # a negative height: its rows are stored top down


def _gif(data: bytes) -> Header:
    """The screen, or the first frame where that is larger: Pillow makes the screen so large."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    num_left = MAX_SUB_BLOCKS
    for _ in range(MAX_BLOCKS):
        kind = data[at]
        if kind == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return Header(max(width, left + frame_width), max(height, top + frame_height))
        at += 2 if kind == 0x21 else 1
        while kind == 0x21 and data[at] and num_left:  # sub-blocks, up to an empty one
            at += 1 + data[at]
            num_left -= 1
        at += kind == 0x21
    raise damaged("The GIF has no frame near its beginning. Save and send it again.")


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        flags_to_size = data[24:30]
        width = int.from_bytes(flags_to_size[:3], "little") + 1
        return Header(width, int.from_bytes(flags_to_size[3:], "little") + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    raise damaged("The WebP does not begin with a picture. Save and send it again.")


def _jpeg(data: bytes) -> Header:
    """Walks the segments to the end marker; what follows it (a phone's film) is not looked at."""
    size: tuple[int, int] | None = None
    whole = _Whole()
    num_scans, at = 0, 2
    for _ in range(MAX_BLOCKS):
        at = data.find(b"\xff", at)
        if at < 0:
            break
        padding = PADDING.match(data, at)
        assert padding is not None, "it matches nothing, too"
        at = padding.end() - 1
        if at == len(data) - 1:
            break
        marker, at = data[at + 1], at + 2
        if marker == END_OF_IMAGE:
            return _jpeg_header(size, ends=True)
        if marker in WITHOUT_LENGTH or not marker:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in START_OF_FRAME and size is None:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = (width, height)
            whole.begin(data[at + 7 : at + length])
        if marker == START_OF_SCAN:
            num_scans += 1
            whole.scan(data[at + 2 : at + length])
            found = SCAN_END.search(data, at + length)
            at = found.end() - 2 if found else len(data)
        else:
            at += length
        if num_scans > MAX_JPEG_SCANS:
            raise damaged("The JPEG has too many scans. Save it again as a baseline JPEG.")
    else:
        raise damaged("The JPEG has too many segments. Save and send it again.")
    if not whole:
        raise damaged("The JPEG is damaged or truncated. Save and send it again.")
    return _jpeg_header(size, ends=False)


def _jpeg_header(size: tuple[int, int] | None, *, ends: bool) -> Header:
    if size is None:
        raise damaged("The JPEG is damaged or truncated. Save and send it again.")
    return Header(*size, ends=ends)


class _Whole:
    """Whether the scans so far have every coefficient of every component to its last bit."""

    def __init__(self) -> None:
        self._left: dict[int, set[int]] = {}

    def begin(self, frame: bytes) -> None:
        """What the frame's header announces: a count, then three bytes for each component."""
        self._left = {frame[1 + 3 * n]: set(range(64)) for n in range(frame[0])}

    def scan(self, scan: bytes) -> None:
        """What a scan's header says it has: components, first and last coefficient, bits."""
        first, last, bits = scan[1 + 2 * scan[0] : 4 + 2 * scan[0]]
        if bits & 15 == 0:
            for n in range(scan[0]):
                self._left.get(scan[1 + 2 * n], set()).difference_update(range(first, last + 1))

    def __bool__(self) -> bool:
        return bool(self._left) and not any(self._left.values())


READERS = {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "GIF": _gif, "BMP": _bmp}
