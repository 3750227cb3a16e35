"""The colours of the demo world: a word, and the shades people mean by it.

Knows RGB values and English colour words. Knows nothing of shapes, images or questions.
"""

from __future__ import annotations

import random
from typing import Final

RGB = tuple[int, int, int]

#: The first shade of each word is the one ``PIL.ImageColor`` uses for it.
SHADES: Final[dict[str, tuple[RGB, ...]]] = {
    "red": ((255, 0, 0), (220, 20, 60), (210, 25, 25), (230, 57, 70)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (46, 204, 113), (0, 160, 60)),
    "blue": ((0, 0, 255), (30, 60, 220), (0, 0, 150), (65, 105, 225), (52, 120, 235)),
    "yellow": ((255, 255, 0), (255, 215, 0), (250, 230, 60), (241, 220, 15)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 120, 0), (243, 130, 33)),
    "purple": ((128, 0, 128), (138, 43, 226), (155, 89, 182), (110, 30, 160)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 190), (255, 20, 147), (255, 0, 255)),
    "brown": ((165, 42, 42), (139, 69, 19), (120, 70, 30), (101, 67, 33)),
    "black": ((0, 0, 0), (20, 20, 20)),
    "white": ((255, 255, 255), (245, 245, 245)),
    "grey": ((128, 128, 128), (160, 160, 160), (105, 105, 105), (185, 185, 185)),
    "cyan": ((0, 255, 255), (0, 200, 220), (64, 224, 208), (0, 210, 210)),
}
COLOURS: Final = tuple(SHADES)


def rgb_of(colour: str) -> RGB:
    """The plain shade of a colour word."""
    return SHADES[colour][0]


def draw_shade(rng: random.Random, colour: str) -> RGB:
    """A shade of the word; half of the time exactly one of the listed ones."""
    red, green, blue = rng.choice(SHADES[colour])
    if rng.random() < 0.5:
        return red, green, blue
    spread = 10
    return (
        min(255, max(0, red + rng.randint(-spread, spread))),
        min(255, max(0, green + rng.randint(-spread, spread))),
        min(255, max(0, blue + rng.randint(-spread, spread))),
    )


def differ(one: RGB, other: RGB, least: float = 70.0) -> bool:
    """Whether two shades are far enough apart (Euclidean, 0 to 441) to be distinguished."""
    squares = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    return bool(squares >= least * least)
