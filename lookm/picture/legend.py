"""What the look means, in plain words: those of the server's page (`legend.js`)."""

import numpy as np
from PIL import Image, ImageDraw

from lookm.picture.shares import Shares
from lookm.picture.veil import (
    FAINT,
    INK,
    LINED,
    PAPER,
    VEIL,
    Pixels,
    blend,
    diagonals,
    shade,
    to_image,
    unseen,
)
from lookm.picture.words import Font

SWATCH = 22
CLEAR = "clear: kept"
PARTLY = "partly veiled: kept in some layers and heads"
DROPPED = "grey: dropped"
MERGED = "striped, words underlined: merged into what was kept"
UNKNOWN = "faint grey: not known, an earlier turn decided it"
UNSEEN = "hatched: the model does not see it"


def entries(shares: Shares, *, cropped: bool) -> list[tuple[Image.Image, str]]:
    """Swatches and their meanings: only of what this picture may have."""
    ground = np.full((SWATCH, SWATCH, 3), PAPER, dtype=np.float64)
    stripes = diagonals(SWATCH, SWATCH)
    found = [(ground, CLEAR)]
    if shares.num_layers * shares.num_heads > 1:
        found.append((shade(ground, 0.25, 0, stripes), PARTLY))
    found.append((shade(ground, 0, 0, stripes), DROPPED))
    if shares.merges:
        found.append((shade(ground, 0, 1, stripes), MERGED))
    if shares.num_unknown:
        found.append((blend(ground, VEIL, FAINT), UNKNOWN))
    if cropped:
        found.append((unseen(ground), UNSEEN))
    return [(_swatch(pixels), text) for pixels, text in found]


def draw_legend(shares: Shares, font: Font, width: int, *, cropped: bool) -> Image.Image:
    """In as many lines as it takes."""
    x = y = 0
    places = []
    for swatch, text in entries(shares, cropped=cropped):
        length = swatch.width + 8 + int(font.getlength(text)) + 24
        if x + length > width and x:
            x, y = 0, y + SWATCH + 8
        places.append((x, y, swatch, text))
        x += length
    made = Image.new("RGB", (width, y + SWATCH + 1), PAPER)
    draw = ImageDraw.Draw(made)
    for x, y, swatch, text in places:
        made.paste(swatch, (x, y))
        draw.text((x + swatch.width + 8, y + SWATCH // 2), text, fill=INK, font=font, anchor="lm")
    return made


def _swatch(pixels: Pixels) -> Image.Image:
    made = to_image(pixels)
    ImageDraw.Draw(made).rectangle([0, 0, SWATCH - 1, SWATCH - 1], outline=LINED)
    return made
