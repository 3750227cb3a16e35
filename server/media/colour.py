"""Every colour mode a decoder can produce, as 8-bit RGB. Pure functions of loaded pictures."""

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)


def to_rgb(image: Image.Image, reduce_by: int = 1) -> Image.Image:
    """`image` as RGB, its sides divided by `reduce_by`; what is transparent shows white.

    Transparency is blended after the reduction, which weighs colours by their alpha.
    """
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        return _over_white(_reduce(image.convert("RGBA"), reduce_by))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return _reduce(image, reduce_by).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The high bytes of 16-bit grey; Pillow's own conversion would clip to white."""
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    return image.reduce(factor) if factor > 1 else image


def _over_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
