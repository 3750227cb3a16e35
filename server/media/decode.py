"""From bytes to an RGB picture of bounded size. Synchronous; runs in a process of the `sandbox`.

    sniff the format -> read the header ourselves -> limits and cost (`examine`, no decoder yet)
    -> decode (JPEG at 1/2, 1/4 or 1/8 where enough) -> RGB, reduced -> turned upright

The decoder's class is chosen by our own look at the first bytes and called directly, so that no
file name, header or list of Pillow's forty formats has a say. Everything a decoder raises becomes a
`MediaError`, whatever it is: it also asserts, recurses and runs out of memory on bytes made for
that. Knows nothing about URLs.
"""

import io
import logging
import warnings
from dataclasses import dataclass, replace

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from server.media.colour import to_rgb
from server.media.config import MediaConfig
from server.media.header import damaged, read_header
from server.media.media_error import MediaError
from server.media.png_chunks import without_metadata
from server.media.sniff import sniff

# Classes instead of `Image.open`: it would also make a multi-picture file out of a phone's JPEG.
DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}

BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# What decoding holds at its worst, in bytes a pixel: measured with each mode of each format, and a
# fifth more. WebP keeps four whole pictures, its two canvases among them (`test_media_header`).
WORKING_BYTES = {"JPEG": 15, "PNG": 15, "WebP": 22, "GIF": 15, "BMP": 15}
KEPT_BYTES = 7  # of each pixel of the result: as Pillow holds it, and as it is handed over

JPEG_END = b"\xff\xd9"
# Two ways to end a JPEG whose end is missing. If its last scan is whole, nothing reads them.
JPEG_TAILS = (JPEG_END, b"\x5a\xa5" * 8 + JPEG_END)

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a picture says of itself, and what decoding it may cost: nothing is decoded yet."""

    name: str
    width: int
    height: int
    factor: int
    cost_bytes: int
    ends: bool = True

    @property
    def kept(self) -> tuple[int, int]:
        """The size after the reduction, before it is turned."""
        return -(-self.width // self.factor), -(-self.height // self.factor)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright RGB picture, and its size before it was reduced."""

    image: Image.Image
    width: int
    height: int


def silence_decoders() -> None:
    """For the whole process: Pillow writes a line for each odd byte, and there may be megabytes.

    Called once at start, because filters of warnings cannot be set for one thread.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def examine(data: bytes, config: MediaConfig) -> Claim:
    """What `decode` would make of the bytes, and its cost. Raises `MediaError`."""
    name = sniff(data)
    header = read_header(name, data)
    width, height = header.width, header.height
    _check_size(width, height, config)
    factor = reduction(width, height, config.target_side)
    claim = Claim(name, width, height, factor, 0, header.ends)
    kept_pixels = claim.kept[0] * claim.kept[1]
    cost_bytes = WORKING_BYTES[name] * width * height + KEPT_BYTES * kept_pixels
    return replace(claim, cost_bytes=cost_bytes)


def decode(data: bytes, config: MediaConfig) -> Decoded:
    """Decode one image. Raises `MediaError`."""
    claim = examine(data, config)
    if claim.name == "PNG":
        data = without_metadata(data)
    if claim.ends:
        return _decode(data, claim)
    whole = data.removesuffix(b"\xff")  # half of its end
    first, second = (_decode(whole + tail, claim) for tail in JPEG_TAILS)
    if first.image.tobytes() != second.image.tobytes():
        raise damaged("The JPEG is damaged or truncated. Save and send it again.")
    return first


def _decode(data: bytes, claim: Claim) -> Decoded:
    name = claim.name
    try:
        with DECODERS[name](io.BytesIO(data)) as picture:
            return _load(picture, claim)
    except MediaError:
        raise
    except BOMB_ERRORS as error:
        raise _too_large("The image has too many pixels. Scale it down.") from error
    except Exception as error:
        raise damaged(f"The {name} is damaged or truncated. Save and send it again.") from error


def _load(picture: ImageFile.ImageFile, claim: Claim) -> Decoded:
    width, height, factor = claim.width, claim.height, claim.factor
    if picture.size != (width, height):
        raise damaged("The image is not as large as it says. Save and send it again.")
    if getattr(picture, "is_animated", False):
        raise MediaError(
            "unsupported_image", "Animated images are not supported. Send the frames you mean."
        )
    if factor > 1:
        # A JPEG decodes at 1/2, 1/4 or 1/8, not below the size named here; the others ignore it.
        picture.draft(None, (width // factor, height // factor))
    picture.load()
    drafted = round(width / picture.width)
    orientation = orientation_of(picture)
    image = upright(to_rgb(picture, factor // drafted), orientation)
    if image.size not in (claim.kept, claim.kept[::-1]):
        raise damaged("The image is not as large as it says. Save and send it again.")
    image.info.clear()
    return Decoded(image, *((width, height) if orientation < 5 else (height, width)))


def _check_size(width: int, height: int, config: MediaConfig) -> None:
    if width < 1 or height < 1:
        raise damaged("The image is empty.")
    if width * height > config.max_pixels:
        raise _too_large(
            f"The image has {width} x {height} pixels; {config.max_pixels} are allowed. Scale it "
            "down."
        )
    if max(width, height) > config.max_aspect * min(width, height):
        raise _too_large(
            f"The image is more than {config.max_aspect} times as long as it is wide. Cut it into "
            "pieces."
        )


def reduction(width: int, height: int, target_side: int | None) -> int:
    """By which power of two a picture is made smaller, so that no side falls below the target.

    With a target of 1344: 4032 x 3024 -> 2 (2016 x 1512); 2000 x 1500 -> 1; 8000 x 6000 -> 4. A
    power of two, because a JPEG decoder can do that: every format then yields the same size.
    """
    if target_side is None or min(width, height) < target_side:
        return 1
    return 1 << ((min(width, height) // target_side).bit_length() - 1)


def orientation_of(picture: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - as in `decode`
        return 1  # a photo with odd metadata is still a photo
    return value if value in UPRIGHT else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as its camera was held."""
    transpose = UPRIGHT.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _too_large(message: str) -> MediaError:
    return MediaError("image_too_large", message)
