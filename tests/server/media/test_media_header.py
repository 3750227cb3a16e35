"""What a picture says of itself, read by us, is what its decoder finds."""

import random
import struct

import pytest
from PIL import Image

from server.media import MediaConfig, MediaError
from server.media.decode import DECODERS, examine
from server.media.header import read_header
from tests.server.media.conftest import encode, picture

FORMS = {
    "JPEG": [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}],
    "PNG": [{}, {"optimize": True}],
    "WebP": [{}, {"lossless": True}, {"exif": b"Exif\0\0x"}],
    "GIF": [{}, {"comment": b"x" * 1000}],
    "BMP": [{}],
}


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_the_size_is_what_the_decoder_finds(name: str) -> None:
    for options in FORMS[name]:
        for size in ((1, 1), (64, 48), (33, 201), (257, 3)):
            header = read_header(name, encode(picture(*size), name, **options))
            assert (header.width, header.height, header.ends) == (*size, True)


def test_webp_with_alpha_and_top_down_bitmaps_are_read() -> None:
    clear = Image.new("RGBA", (31, 17), (1, 2, 3, 0))
    header = read_header("WebP", encode(clear, "WebP"))
    assert (header.width, header.height) == (31, 17)
    bitmap = bytearray(encode(picture(8, 6), "BMP"))
    bitmap[22:26] = struct.pack("<i", -6)
    assert read_header("BMP", bytes(bitmap)).height == 6


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe0\0\2" * 10**6,
        b"\xff\xd8" + b"\xff" * 10**7,
        b"\xff\xd8" + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\xff" * 10**7 + b"\0",
        b"\xff\xd8" + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 10**5,
        b"GIF89a" + b"\1\0\1\0\0\0\0" + b"!\xfe\1x\0" * 10**6,
        b"GIF89a" + b"\1\0\1\0\0\0\0" + b"!\xfe" + b"\1x" * 10**6,
    ],
    ids=["segments", "padding", "padding-in-a-scan", "scans", "blocks", "sub-blocks"],
)
@pytest.mark.timeout(20)
def test_headers_made_to_be_long_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError):
        read_header("GIF" if data[:3] == b"GIF" else "JPEG", data)


def test_damaged_headers_only_ever_raise_media_errors() -> None:
    chance = random.Random(1)
    for name in sorted(DECODERS):
        original = encode(picture(20, 20), name)
        for _ in range(500):
            data = bytearray(original)
            for _ in range(chance.choice((1, 4))):
                data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
            try:
                examine(bytes(data[: chance.randrange(4, len(data))]), MediaConfig())
            except MediaError:
                continue
