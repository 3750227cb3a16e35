"""The one look of what became of a token, here and on the server's page (`paint.js`).

Kept is clear, dropped is under a grey veil, merged is striped as well: a picture keeps its hues.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookm.picture.shares import Shares

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.float64]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 34)
LINED: Colour = (110, 115, 122)
VEIL: Colour = (126, 124, 120)  # neither paper nor ink
STRIPE: Colour = (245, 184, 61)
VEILED, STRIPED = 0.86, 0.75  # how thick they are at most: what is under them can be made out
FAINT = 0.25  # the veil where nothing is known
WASHED, HATCHED = 0.6, 0.5  # white, and grey lines on it, where the model does not see
STRIPE_GAP = 6  # pixels


def veil(kept: float) -> float:
    """The thickness of the veil over what a share `kept` of layers and heads kept.

    Of its root, so that the small shares, which most patches have, are told apart.
    """
    return VEILED * (1 - math.sqrt(kept))


def diagonals(width: int, height: int, *, slope: int = 1) -> Pixels:
    """Lines `[height, width]`, 1 where there is one: they fall (`slope` 1) or rise (-1)."""
    shift = np.arange(width)[None] - slope * np.arange(height)[:, None]
    distance = np.abs((shift + STRIPE_GAP / 2) % STRIPE_GAP - STRIPE_GAP / 2) / np.sqrt(2)
    lines: Pixels = np.clip(STRIPE_GAP / 8 + 0.5 - distance, 0, 1)  # a quarter of the gap is wide
    return lines


def shaded(pixels: Pixels, shares: Shares, token: int, stripes: Pixels) -> Pixels:
    """Pixels `[height, width, 3]` of one token; `stripes` `[height, width]` are of `diagonals`."""
    if token < shares.num_unknown:
        return blend(pixels, VEIL, FAINT)
    return shade(pixels, shares.kept_T[token], shares.merged_T[token], stripes)


def shade(pixels: Pixels, kept: float, merged: float, stripes: Pixels) -> Pixels:
    """Pixels of what shares of the layers and heads kept and merged."""
    return blend(blend(pixels, VEIL, veil(kept)), STRIPE, STRIPED * merged * stripes[..., None])


def unseen(pixels: Pixels) -> Pixels:
    """Pixels that the model does not see."""
    height, width, _ = pixels.shape
    lines = diagonals(width, height, slope=-1)
    return blend(blend(pixels, PAPER, WASHED), VEIL, HATCHED * lines[..., None])


def blend(pixels: Pixels, colour: Colour, opacity: float | Pixels) -> Pixels:
    """A colour over pixels."""
    return pixels * (1 - opacity) + np.array(colour) * opacity


def to_image(pixels: Pixels) -> Image.Image:
    """As pillow has it."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
