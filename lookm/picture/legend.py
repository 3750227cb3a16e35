"""What the veils mean, in plain words."""

from PIL import Image, ImageDraw

from lookm.picture.shares import Shares
from lookm.picture.veil import INK, PAPER, UNKNOWN, hatch, over, veil
from lookm.picture.words import Font

SWATCH = 22
GROUND = (232, 208, 120)  # stands for a picture under the veil
STEPS = 5


def entries(shares: Shares, *, cropped: bool) -> list[tuple[Image.Image, str]]:
    """Swatches and their meanings: only of what this picture may have."""
    one = shares.num_layers * shares.num_heads == 1
    found = [(_swatch(GROUND), "kept" if one else "clear: kept by every layer and head")]
    if not one:
        ramp = Image.new("RGB", (SWATCH * STEPS, SWATCH), PAPER)
        for step in range(STEPS):
            colour = over(GROUND, *veil(1 - step / (STEPS - 1), merged=0))
            ramp.paste(colour, (step * SWATCH, 0, (step + 1) * SWATCH, SWATCH))
        found.append((ramp, "the thicker the veil, the fewer of them"))
    if shares.merges:
        blue = over(GROUND, *veil(0, merged=1))
        found.append((_swatch(blue), "blue: let go, but merged into what is kept"))
    if not shares.merges or (1 - shares.kept_T - shares.merged_T).max() > 0.01:
        found.append((_swatch(over(GROUND, *veil(0, merged=0))), "dark: dropped"))
    if shares.num_unknown:
        found.append((_swatch(UNKNOWN), "grey: not known (earlier turns did not ask)"))
    if cropped:
        found.append((hatch((SWATCH, SWATCH), 6), "hatched: never seen by the model"))
    return found


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


def _swatch(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (SWATCH, SWATCH), colour)
