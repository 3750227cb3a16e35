"""From bytes to an RGB picture of bounded size. Synchronous: `loader` runs it in threads.

    sniff the format -> read the header -> limits -> decode (JPEG at 1/2, 1/4 or 1/8 where enough)
    -> RGB, reduced -> turned upright

The decoder's class is chosen by our own look at the first bytes and called directly, so that no
file name, header or list of Pillow's forty formats has a say. Everything a decoder raises becomes a
`MediaError`, whatever it is: it also asserts, recurses and runs out of memory on bytes made for
that. Knows nothing about URLs.
"""

import io
import logging
import warnings
from dataclasses import dataclass

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from server.media.budget import Budget
from server.media.colour import to_rgb
from server.media.config import MediaConfig
from server.media.media_error import MediaError
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

# Every scan of a progressive JPEG is a pass over all pixels and can be a few bytes long; encoders
# write about ten.
MAX_JPEG_SCANS = 100
JPEG_START_OF_SCAN = b"\xff\xda"

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


def decode(data: bytes, config: MediaConfig, budget: Budget) -> Decoded:
    """Decode one image. Raises `MediaError`."""
    name = sniff(data)
    if name == "JPEG" and data.count(JPEG_START_OF_SCAN) > MAX_JPEG_SCANS:
        raise _damaged("The JPEG has too many scans. Save it again as a baseline JPEG.")
    try:
        with DECODERS[name](io.BytesIO(data)) as picture:
            return _decode(picture, config, budget)
    except MediaError:
        raise
    except BOMB_ERRORS as error:
        raise _too_large("The image has too many pixels. Scale it down.") from error
    except Exception as error:
        raise _damaged(f"The {name} is damaged or truncated. Save and send it again.") from error


def _decode(picture: ImageFile.ImageFile, config: MediaConfig, budget: Budget) -> Decoded:
    width, height = picture.size
    _check_size(width, height, config)
    if getattr(picture, "is_animated", False):
        raise MediaError(
            "unsupported_image", "Animated images are not supported. Send the frames you mean."
        )
    factor = reduction(width, height, config.target_side)
    kept = (-(-width // factor), -(-height // factor))
    budget.take_pixels(kept[0] * kept[1])
    if factor > 1:
        # A JPEG decodes at 1/2, 1/4 or 1/8, not below the size named here; the others ignore it.
        picture.draft(None, (width // factor, height // factor))
    picture.load()
    drafted = round(width / picture.width)
    orientation = orientation_of(picture)
    image = upright(to_rgb(picture, factor // drafted), orientation)
    if image.size not in (kept, kept[::-1]):
        raise _damaged("The image is not as large as it says. Save and send it again.")
    image.info.clear()
    return Decoded(image, *((width, height) if orientation < 5 else (height, width)))


def _check_size(width: int, height: int, config: MediaConfig) -> None:
    if width < 1 or height < 1:
        raise _damaged("The image is empty.")
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


def _damaged(message: str) -> MediaError:
    return MediaError("invalid_image", message)
