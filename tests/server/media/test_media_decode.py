"""Bytes to pictures: every format and colour mode, and everything that is refused."""

import base64
import io
import logging
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from server.media import MediaConfig, MediaError
from server.media.decode import DECODERS, Decoded, decode, reduction, silence_decoders
from tests.server.media.conftest import encode, picture


def run(data: bytes, **config: object) -> Decoded:
    return decode(data, MediaConfig(**config))


def refusal(data: bytes, **config: object) -> MediaError:
    with pytest.raises(MediaError) as refused:
        run(data, **config)
    assert refused.value.status == 400
    return refused.value


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = run(data).image
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_hand(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


# --- what is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_format_decodes_to_rgb(name: str) -> None:
    decoded = run(encode(picture(64, 48), name))
    assert (decoded.width, decoded.height) == decoded.image.size == (64, 48)
    assert decoded.image.mode == "RGB"
    assert type(decoded.image) is Image.Image
    assert decoded.image.info == {}


@pytest.mark.parametrize("name", ["PNG", "BMP"])
def test_lossless_pixels_are_exact(name: str) -> None:
    assert run(encode(picture(9, 7), name)).image.tobytes() == picture(9, 7).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 8), 30000, np.uint16))
    else:
        image = picture(8, 6, mode)
    assert run(encode(image)).image.mode == "RGB"


def test_transparency_shows_white() -> None:
    assert pixel(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))) == (127, 127, 127)
    assert pixel(encode(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (1, 2, 3, 0)), "WebP", lossless=True)) == (
        255,
        255,
        255,
    )


@pytest.mark.parametrize(("name", "transparency"), [("PNG", 0), ("PNG", b"\x00\xff"), ("GIF", 0)])
def test_transparent_palette_entries_show_white(name: str, transparency: int | bytes) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    data = encode(image, name, transparency=transparency)
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (0, 255, 0)


def test_transparent_colour_key_of_an_rgb_png_shows_white() -> None:
    data = encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))
    assert pixel(data) == (255, 255, 255)


def test_sixteen_bit_png_keeps_its_brightness() -> None:
    grey = png_by_hand(1, 1, 16, 0, b"\0" + b"\x80\x00")
    colour = png_by_hand(1, 1, 16, 2, b"\0" + b"\x80\x00\x40\x00\xff\xff")
    assert pixel(grey) == (128, 128, 128)
    assert pixel(colour) == (128, 64, 255)


def test_cmyk_and_grey_jpegs_keep_their_colours() -> None:
    red, green, blue = pixel(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red > 240
    assert max(green, blue) < 15
    assert pixel(encode(Image.new("L", (16, 16), 100), "JPEG")) == (100, 100, 100)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = Image.new("RGB", (40, 24), (0, 0, 255))
    stored.paste((255, 0, 0), (0, 0, 20, 12))  # red where the stored picture begins
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = run(encode(stored, "JPEG", exif=exif, quality=95))
    upright = decoded.image
    size = (40, 24) if orientation < 5 else (24, 40)
    assert upright.size == (decoded.width, decoded.height) == size
    corner = {1: "lt", 2: "rt", 3: "rb", 4: "lb", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    at = (4 if corner[0] == "l" else size[0] - 5, 4 if corner[1] == "t" else size[1] - 5)
    red, _, blue = pixel_of(upright, at)
    assert red > 200 > blue


def pixel_of(image: Image.Image, at: tuple[int, int]) -> tuple[int, int, int]:
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_without_meaning_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert run(encode(picture(16, 8), "JPEG", exif=exif)).image.size == (16, 8)


def test_phone_photo_with_a_second_picture_inside_is_one_picture() -> None:
    first, second = picture(32, 24), picture(8, 8)
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert run(data).image.size == (32, 24)


def test_gif_with_one_frame_is_a_picture() -> None:
    assert run(encode(picture(8, 6), "GIF")).image.size == (8, 6)


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [
        (4032, 3024, 2),
        (2000, 1500, 1),
        (2688, 2688, 2),
        (2687, 9000, 1),
        (8192, 8192, 4),
        (1, 1, 1),
    ],
)
def test_reduction_leaves_both_sides_at_or_above_the_target(
    width: int, height: int, factor: int
) -> None:
    assert reduction(width, height, 1344) == factor
    assert reduction(width, height, None) == 1


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_large_pictures_are_reduced_and_tell_their_real_size(name: str, factor: int) -> None:
    width, height = 101 * factor - factor // 2, 77 * factor
    smooth = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    decoded = run(encode(smooth, name), target_side=77)
    assert (decoded.width, decoded.height) == (width, height)
    assert decoded.image.size == (101, 77)
    wanted = np.asarray(smooth.reduce(factor), np.int16)
    assert np.abs(np.asarray(decoded.image, np.int16) - wanted).mean() < 6


def test_jpeg_is_reduced_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    load = DECODERS["JPEG"].load

    def spy(self: Image.Image) -> object:
        decoded.append(self.size)
        return load(self)  # type: ignore[arg-type]

    monkeypatch.setattr(DECODERS["JPEG"], "load", spy)
    run(encode(picture(799, 600), "JPEG"), target_side=100)
    assert decoded[0] == (200, 150)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_pixels_over_the_limit_are_refused_before_decoding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: object) -> None:
        raise AssertionError("decoded")

    data = encode(Image.new("RGB", (60, 40)), name)
    monkeypatch.setattr(DECODERS[name], "load", never)
    refused = refusal(data, max_pixels=2399)
    assert refused.code == "image_too_large"
    assert "60 x 40" in refused.message


def test_twenty_thousand_squared_is_refused_by_its_header() -> None:
    claims = {
        "png": png_by_hand(20_000, 20_000, 8, 2, b""),
        "gif": b"GIF89a" + struct.pack("<HH", 20_000, 20_000) + b"\0\0\0" + GIF_FRAME,
        "bmp": bmp_header(20_000, 20_000),
    }
    assert refusal(claims["png"]).code == "image_too_large"
    assert refusal(claims["bmp"]).code == "image_too_large"
    assert refusal(claims["gif"]).code == "image_too_large"


GIF_FRAME = b"," + struct.pack("<HHHH", 0, 0, 20_000, 20_000) + b"\0\x08\x01\0\0;"


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def test_extreme_shapes_are_refused() -> None:
    assert refusal(encode(Image.new("L", (1, 51)))).code == "image_too_large"
    assert refusal(encode(Image.new("L", (102, 2)))).code == "image_too_large"
    assert run(encode(Image.new("L", (1, 50)))).image.size == (1, 50)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GIF", "PNG", "WebP"])
def test_animations_are_refused(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:])
    refused = refusal(data)
    assert refused.code == "unsupported_image"
    assert "frames" in refused.message


def refused_formats() -> dict[str, bytes]:
    tiff16 = encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF")
    return {
        "TIFF": encode(picture(), "TIFF"),
        "TIFF 16": tiff16,
        "TIFF big-endian": b"MM\0*" + tiff16[4:],
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "SVG xml": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!DOCTYPE svg [<!ENTITY x "y">]><svg/>',
        "HEIC": b"\0\0\0\x18ftypheic" + b"\0" * 20,
        "AVIF": b"\0\0\0\x18ftypavif" + b"\0" * 20,
        "Video": b"\0\0\0\x18ftypisom" + b"\0" * 20,
        "PDF": b"%PDF-1.7",
        "icon": encode(picture(16, 16), "ICO"),
        "web page": b"\n<!DOCTYPE html><html>",
        "bytes": b"hello",
        "bytes ppm": b"P6 2 2 255\n" + b"\0" * 12,
        "bytes eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


@pytest.mark.parametrize("name", refused_formats())
def test_other_formats_are_refused_by_name_with_the_way_out(name: str) -> None:
    refused = refusal(refused_formats()[name])
    assert refused.code == "unsupported_image"
    assert name.split()[0] in refused.message or name == "web page"
    assert "Send JPEG, PNG, WebP, GIF or BMP" in refused.message


def test_tiff_inside_of_a_trusted_signature_is_not_opened() -> None:
    assert TiffImagePlugin.TiffImageFile not in DECODERS.values()
    assert refusal(b"\xff\xd8\xff" + encode(picture(), "TIFF")).code == "invalid_image"


def test_empty_bytes_are_refused() -> None:
    assert refusal(b"").code == "invalid_image"


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_truncated_images_are_refused(name: str, part: float) -> None:
    data = encode(picture(64, 48), name)
    refused = refusal(data[: max(12, int(len(data) * part))])
    assert refused.code in ("invalid_image", "unsupported_image")


def test_jpeg_without_its_last_lines_is_refused() -> None:
    data = encode(picture(64, 48), "JPEG", quality=95)
    assert refusal(data[:-200]).code == "invalid_image"


def test_jpeg_with_endless_scans_is_refused_without_decoding_them() -> None:
    data = encode(picture(64, 48), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    refused = refusal(data[:-2] + scan * 200 + data[-2:])
    assert "scans" in refused.message
    assert run(data).image.size == (64, 48)


def test_metadata_that_is_not_needed_cannot_make_a_png_unreadable() -> None:
    data = encode(picture())
    packed = zlib.compress(b"0" * 50_000_000, 9)
    for chunk in (
        png_chunk(b"zTXt", b"a\0\0" + packed),
        png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 * 2**20))),
        png_chunk(b"iCCP", b"no zero"),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
    ):
        assert run(data[:33] + chunk + data[33:]).image.tobytes() == picture().tobytes()


@pytest.mark.parametrize("kind", ["eXIf", "tEXt", "zTXt", "iTXt"])
def test_a_png_is_turned_upright_wherever_it_says_so(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tiff = exif.tobytes()
    raw = f"\nexif\n{len(tiff):8}\n{tiff.hex()}\n".encode()
    xmp = b'<x tiff:Orientation="6"/>'
    body = {
        "eXIf": tiff.removeprefix(b"Exif\0\0"),
        "tEXt": b"Raw profile type exif\0" + raw,
        "zTXt": b"Raw profile type exif\0\0" + zlib.compress(raw),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + xmp,
    }[kind]
    data = encode(picture(8, 6))
    assert run(data[:33] + png_chunk(kind.encode(), body) + data[33:]).image.size == (6, 8)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lacking", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(progressive: bool, lacking: int) -> None:
    for size in ((64, 48), (33, 17), (200, 150)):
        data = encode(picture(*size), "JPEG", progressive=progressive)
        assert run(data[:-lacking]).image.tobytes() == run(data).image.tobytes()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_than_its_end_marker_is_not(progressive: bool) -> None:
    data = encode(picture(64, 48), "JPEG", progressive=progressive)
    for lacking in (8, 20, 100, 1000):
        assert refusal(data[:-lacking]).code == "invalid_image"
    scans = data.split(b"\xff\xda")
    for n in range(1, len(scans)):
        assert refusal(b"\xff\xda".join(scans[:n])).code == "invalid_image"


def test_what_follows_the_end_of_a_jpeg_is_ignored() -> None:
    data = encode(picture(64, 48), "JPEG")
    film = random.Random(0).randbytes(2**20) + b"\xff\xda" * 1000
    assert run(data + film).image.tobytes() == run(data).image.tobytes()


def test_damaged_bytes_only_ever_raise_media_errors() -> None:
    chance = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    originals = [encode(picture(40, 30, mode), "PNG") for mode in ("P", "RGBA", "L")]
    originals += [encode(picture(40, 30), name) for name in DECODERS]
    originals += [encode(picture(40, 30), "JPEG", exif=exif, progressive=True)]
    outcomes = {True: 0, False: 0}
    for original in originals:
        for _ in range(60):
            data = bytearray(original)
            for _ in range(chance.choice((1, 3, 20))):
                data[chance.randrange(len(data) if chance.random() < 0.5 else 64)] ^= (
                    1 << chance.randrange(8)
                )
            try:
                image = run(bytes(data), max_pixels=10**6).image
            except MediaError:
                outcomes[False] += 1
            else:
                outcomes[True] += 1
                assert image.mode == "RGB"
    assert min(outcomes.values()) > 20


def test_nothing_but_pixels_leaves_with_a_picture() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret description"
    buffer = io.BytesIO()
    decoded = run(encode(picture(), "JPEG", exif=exif, comment=b"secret"))
    decoded.image.save(buffer, "JPEG")
    assert b"secret" not in buffer.getvalue()


# --- whatever decoders do -----------------------------------------------------------------------

NO_PALETTE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAMAAACdt4HsAAAAG0lEQVR42u3BgQAAAADDoPlT3+AEVQEAAAB8AxBA"
    "AAG9PLePAAAAAElFTkSuQmCC"
)


def test_a_palette_picture_without_a_palette_is_damaged() -> None:
    assert refusal(base64.b64decode(NO_PALETTE)).code == "invalid_image"


@pytest.mark.parametrize("raised", [AssertionError, MemoryError, RecursionError, KeyError, OSError])
def test_whatever_a_decoder_raises_is_a_damaged_picture(
    raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: object) -> None:
        raise raised

    monkeypatch.setattr(DECODERS["PNG"], "load", breaks)
    assert refusal(encode(picture())).code == "invalid_image"


def many_tags(num_tags: int) -> bytes:
    """EXIF of tags that each say to be huge; the last one says how the camera was held."""
    others = (number for number in range(65_536) if number != 0x0112)
    tags = (struct.pack("<HHII", next(others), 2, 2**31, 8) for _ in range(num_tags - 1))
    upright = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, num_tags)
    return head + b"".join(tags) + upright + b"\0" * 4


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WebP"])
def test_thousands_of_broken_tags_write_nothing(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    num_tags = 5000 if name == "JPEG" else 65_535  # a segment of a JPEG has 64 KiB
    data = encode(picture(8, 6), name, exif=many_tags(num_tags))
    level = logging.getLogger("PIL").level
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        silence_decoders()
        decoded = run(data)
    logging.getLogger("PIL").setLevel(level)
    assert decoded.image.size == (6, 8), "the tag behind the broken ones is read"
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
