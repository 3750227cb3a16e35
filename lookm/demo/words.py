"""English for the demo world: how answers name objects, places, images and lists.

Knows grammar and scenes. Knows nothing of which question is asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lookm.demo.scenes import Scene, Shape

_ORDINAL_TEXT = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth"
)
_NUMBER_TEXT = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen"
)
_NOTE_KEY_TEXT = "code word|password|secret word|name|city|animal|topic|key"
ORDINALS: Final = tuple(_ORDINAL_TEXT.split())
NUMBERS: Final = tuple(_NUMBER_TEXT.split())
_PREPOSITIONS: Final = {"top": "at the", "bottom": "at the", "left": "on the", "right": "on the"}

#: What notes may be about, and the words they may hold.
NOTE_KEYS: Final = tuple(_NOTE_KEY_TEXT.split("|"))
_NOTE_TEXT = """
apple banana cherry lemon mango grape melon peach carrot potato tomato onion garlic pepper bread
butter cheese honey sugar coffee river mountain forest desert island ocean valley meadow garden
bridge castle tower temple market station harbour window mirror candle lantern ladder hammer
needle basket blanket pillow bottle kettle pencil paper letter novel poem story music piano
guitar violin trumpet drum flute dancer painter sailor farmer doctor pilot tiger lion zebra
camel horse rabbit monkey parrot eagle falcon salmon dolphin whale turtle spider beetle paris
london berlin madrid vienna oslo lisbon prague athens dublin tokyo cairo delhi lima quito anna
peter maria david laura simon clara oscar emma felix nina hugo copper silver marble velvet
cotton thunder winter summer autumn spring monday friday sunday comet planet rocket engine
"""
NOTE_WORDS: Final = tuple(_NOTE_TEXT.split())


@dataclass(frozen=True, slots=True)
class World:
    """What one conversation is about: pictures in order, and notes (key, word) said in text."""

    scenes: tuple[Scene, ...]
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def singles(self) -> bool:
        """Whether every picture shows exactly one object."""
        return all(len(scene.shapes) == 1 for scene in self.scenes)


def a(phrase: str) -> str:
    """The phrase with its article: `a red circle`, `an orange star`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def name(shape: Shape) -> str:
    """`red circle`."""
    return f"{shape.colour} {shape.kind}"


def at(place: str) -> str:
    """`in the top left`, `on the right`."""
    return f"{_PREPOSITIONS.get(place, 'in the')} {place}"


def join(parts: Sequence[str]) -> str:
    """`red, blue and green`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def content(scene: Scene) -> str:
    """`shows a red circle`, `shows a red circle and a blue star`, `is plain red`."""
    if not scene.shapes:
        return f"is plain {scene.colour}"
    return f"shows {join([a(name(shape)) for shape in scene.shapes])}"


def description(scene: Scene) -> str:
    """Content with places and background."""
    if not scene.shapes:
        return f"is plain {scene.colour}"
    placed = join([f"{a(name(shape))} {at(shape.place)}" for shape in scene.shapes])
    return f"shows {placed} on {a(scene.background)} background"


def refer(rng: random.Random, index: int, count: int) -> tuple[str, str]:
    """How a question and its answer name image `index` (from 0) of `count`."""
    fate = rng.random()
    if count == 1 and fate < 0.6:
        return rng.choice(("this image", "the image", "this picture", "the picture")), "The image"
    if index == count - 1 and count > 1 and 0.6 <= fate < 0.68:
        return rng.choice(("the last image", "the last image", "this image")), "The last image"
    number = index + 1
    if fate < 0.72:
        return f"image {number}", f"Image {number}"
    if fate < 0.88:
        word = ORDINALS[index]
        return f"the {word} {rng.choice(('image', 'image', 'picture'))}", f"The {word} image"
    other = (f"picture {number}", f"image #{number}", f"Image {number}", f"image {NUMBERS[index]}")
    return rng.choice(other), f"Image {number}"
