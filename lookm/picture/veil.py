"""The one scale of colours: what is kept is clear; the rest is under a veil, the thicker the more
layers and heads let go of it. The veil is blue where it was merged, dark where it was dropped."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lookm.picture.shares import Shares

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 34)
FAINT: Colour = (110, 115, 122)
MERGED: Colour = (38, 92, 200)
DROPPED: Colour = (18, 18, 20)
UNKNOWN: Colour = (150, 150, 150)
THICKEST = 0.78  # so that what is dropped everywhere can still be made out

Pixels = npt.NDArray[np.float64]


def veil(kept: float, merged: float) -> tuple[Colour, float]:
    """Colour and thickness, in [0, 1], over what a share `kept` of layers and heads kept."""
    gone = max(1 - kept, 1e-9)
    blue = min(1.0, merged / gone)
    colour = tuple(
        round(blue * one + (1 - blue) * other) for one, other in zip(MERGED, DROPPED, strict=True)
    )
    return (colour[0], colour[1], colour[2]), THICKEST * (1 - kept)


def of_token(shares: Shares, token: int) -> tuple[Colour, float]:
    """The veil over one token."""
    if token < shares.num_unknown:
        return UNKNOWN, THICKEST
    return veil(float(shares.kept_T[token]), float(shares.merged_T[token]))


def over(ground: Colour, colour: Colour, thickness: float) -> Colour:
    """A ground under a veil."""
    red, green, blue = (
        round((1 - thickness) * below + thickness * above)
        for below, above in zip(ground, colour, strict=True)
    )
    return red, green, blue


def under(pixels: Pixels, colour: Colour, thickness: float) -> Pixels:
    """Pixels `[.., 3]` under a veil: its colour over their grey, so that no hue is theirs."""
    grey = pixels.mean(axis=-1, keepdims=True)
    faded = min(1.0, thickness / THICKEST)
    pale = pixels * (1 - faded) + grey * faded
    veiled: Pixels = pale * (1 - thickness) + np.array(colour) * thickness
    return veiled


def hatch(size: tuple[int, int], step: int = 9) -> Image.Image:
    """Diagonal lines on grey: what the model never saw."""
    width, height = size
    made = Image.new("RGB", size, (226, 228, 231))
    draw = ImageDraw.Draw(made)
    for x in range(-height, width, step):
        draw.line([(x, height), (x + height, 0)], fill=(176, 180, 186), width=1)
    return made
