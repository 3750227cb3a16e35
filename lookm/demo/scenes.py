"""What the demo model can see: a scene, how one is drawn by chance, and its picture.

Knows colours, shapes and PIL. Knows nothing of questions, tokens or tensors. Every scene is a
frozen value and `render` is a pure function of it, so a seed names a picture for ever. Train and
test scenes come from different seed strings and can never be the same draw.

    render(Scene(kind="circle", colour="red")).save("red-circle.png")
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageDraw

from lookm.demo.palette import COLOURS, RGB, differ, draw_shade, rgb_of
from lookm.demo.shapes import KINDS, MAX_TURN_DEG, outline

Split = Literal["train", "test"]

#: Backgrounds are a colour word or one of these.
TEXTURES: Final = ("gradient", "noisy")
#: Rows top to bottom, columns left to right.
PLACES: Final = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_CANVASES: Final = (
    *((64, 64), (96, 96), (112, 112), (128, 128), (200, 200), (224, 224), (224, 224), (256, 256)),
    *((160, 120), (320, 240), (120, 160), (240, 180), (256, 144), (300, 300), (336, 336)),
)
_SIDES: Final = (0.385, 0.615)  # where left ends and right begins
_MIN_DOUBT: Final = 0.035  # drawn scenes keep this distance from those borders


@dataclass(frozen=True, slots=True)
class Shape:
    """One object. `x`, `y` are its centre and `size` its extent, as fractions of the canvas."""

    kind: str
    colour: str
    x: float = 0.5
    y: float = 0.5
    size: float = 0.6
    angle_deg: float = 0.0
    variant: float = 0.5
    rgb: RGB | None = None
    border: RGB | None = None

    @property
    def place(self) -> str:
        """Its place in words, such as `top left`."""
        column = sum(self.x > side for side in _SIDES)
        return PLACES[sum(self.y > side for side in _SIDES)][column]


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: an object, maybe a `second`; where `kind` is None, nothing but `colour`."""

    kind: str | None
    colour: str
    x: float = 0.5
    y: float = 0.5
    size: float = 0.6
    angle_deg: float = 0.0
    variant: float = 0.5
    rgb: RGB | None = None
    border: RGB | None = None
    second: Shape | None = None
    background: str = "white"
    background_rgb: tuple[RGB, RGB] | None = None
    canvas: tuple[int, int] = (224, 224)
    smooth: bool = True
    jpeg_quality: int | None = None
    noise_seed: int = 0

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The objects, in the order in which answers name them."""
        if self.kind is None:
            return ()
        turn = (self.angle_deg, self.variant, self.rgb, self.border)
        first = Shape(self.kind, self.colour, self.x, self.y, self.size, *turn)
        return (first,) if self.second is None else (first, self.second)


def scene(split: Split, seed: int, number: int) -> Scene:
    """The `number`-th scene of a split; the split is part of the seed itself."""
    return draw_scene(random.Random(f"llava-demo scene {split} {seed} {number}"))


def draw_scene(rng: random.Random) -> Scene:
    """A scene by chance: 84 % one object, 8 % two, 8 % a plain colour."""
    fate = rng.random()
    canvas = rng.choice(_CANVASES)
    finish = (rng.random() < 0.7, rng.randint(40, 95) if rng.random() < 0.15 else None)
    noise_seed = rng.getrandbits(32)
    if fate < 0.08:
        colour = rng.choice(COLOURS)
        return Scene(None, colour, rgb=draw_shade(rng, colour), background=colour, canvas=canvas)
    background, shades = _draw_background(rng)
    first = _draw_shape(rng, background, shades, canvas)
    second = None
    if fate < 0.16:
        first, second = _draw_pair(rng, first, background, shades, canvas)
    smooth, jpeg_quality = finish
    return Scene(
        first.kind,
        first.colour,
        first.x,
        first.y,
        first.size,
        first.angle_deg,
        first.variant,
        first.rgb,
        first.border,
        second,
        background,
        shades,
        canvas,
        smooth,
        jpeg_quality,
        noise_seed,
    )


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, `scene.canvas` pixels."""
    scale = 2 if scene.smooth and max(scene.canvas) <= 340 else 1
    width, height = scene.canvas[0] * scale, scene.canvas[1] * scale
    image = _background(scene, (width, height))
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        rings = [
            [(x * width, y * height) for x, y in ring] for ring in rings_of(shape, scene.canvas)
        ]
        image.paste(shape.rgb or rgb_of(shape.colour), (0, 0), mask_of(rings, (width, height)))
        if shape.border is not None:
            line_px = max(1, round(0.035 * shape.size * min(width, height)))
            for ring in rings:
                pen.line([*ring, ring[0]], fill=shape.border, width=line_px, joint="curve")
    if scale > 1:
        image = image.reduce(scale)
    if scene.jpeg_quality is not None:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=scene.jpeg_quality)
        image = Image.open(buffer).convert("RGB")
    return image


def rings_of(shape: Shape, canvas: tuple[int, int]) -> list[list[tuple[float, float]]]:
    """The rings of a shape as fractions of the canvas (a 4:3 canvas squashes them)."""
    half_x = shape.size / 2 * min(canvas) / canvas[0]
    half_y = shape.size / 2 * min(canvas) / canvas[1]
    rings = outline(shape.kind, shape.variant, shape.angle_deg)
    return [[(shape.x + x * half_x, shape.y + y * half_y) for x, y in ring] for ring in rings]


def mask_of(rings: list[list[tuple[float, float]]], size: tuple[int, int]) -> Image.Image:
    """255 where the first ring is filled and no later ring cuts a hole; rings are in pixels."""
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    for i, ring in enumerate(rings):
        pen.polygon(ring, fill=255 if i == 0 else 0)
    return mask


def _background(scene: Scene, size: tuple[int, int]) -> Image.Image:
    if scene.kind is None:
        return Image.new("RGB", size, scene.rgb or rgb_of(scene.colour))
    plain = scene.background if scene.background in COLOURS else "white"
    one, other = scene.background_rgb or (rgb_of(plain), rgb_of("grey"))
    if scene.background == "gradient":
        ramp = Image.linear_gradient("L").resize(size)
        if scene.noise_seed % 2:
            ramp = Image.linear_gradient("L").rotate(90).resize(size)
        return Image.composite(Image.new("RGB", size, one), Image.new("RGB", size, other), ramp)
    if scene.background == "noisy":
        noise = np.random.default_rng(scene.noise_seed)
        grain = noise.normal(
            0.0, 15 + scene.noise_seed % 40, (size[1], size[0], 1 + 2 * (other[0] % 2))
        )
        pixels = np.clip(np.asarray(one, dtype=np.float64) + grain, 0, 255).astype(np.uint8)
        return Image.fromarray(pixels)
    return Image.new("RGB", size, one)


def _draw_background(rng: random.Random) -> tuple[str, tuple[RGB, RGB]]:
    fate = rng.random()
    word = "white" if fate < 0.5 else "black" if fate < 0.58 else "grey" if fate < 0.64 else ""
    if not word and fate < 0.82:
        word = rng.choice(COLOURS)
    if word:
        exact = fate < 0.35  # plain white is what most people send
        shade = rgb_of(word) if exact else draw_shade(rng, word)
        return word, (shade, shade)
    one, other = (draw_shade(rng, rng.choice(COLOURS)) for _ in range(2))
    if not differ(one, other, 100.0):
        return _draw_background(rng)
    return ("gradient" if fate < 0.92 else "noisy"), (one, other)


def _draw_shape(
    rng: random.Random, background: str, shades: tuple[RGB, RGB], canvas: tuple[int, int]
) -> Shape:
    against = shades if background == "gradient" else shades[:1]
    while True:
        colour = rng.choice(COLOURS)
        rgb = draw_shade(rng, colour)
        if colour != background and all(differ(rgb, shade) for shade in against):
            break
    kind = rng.choice(KINDS)
    turn = MAX_TURN_DEG[kind] if rng.random() < 0.5 else 0.0
    border = None
    if rng.random() < 0.2 and kind != "ring":
        border = (
            rgb_of(rng.choice(("black", "white", "grey"))) if rng.random() < 0.8 else (90, 60, 30)
        )
    size = rng.uniform(0.25, 0.9)
    x, y = _draw_place(rng, size, canvas)
    angle_deg = rng.uniform(-turn, turn)
    return Shape(kind, colour, x, y, size, angle_deg, rng.random(), rgb, border)


def _draw_place(rng: random.Random, size: float, canvas: tuple[int, int]) -> tuple[float, float]:
    if rng.random() < 0.3:
        return 0.5 + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.03, 0.03)
    place = []
    for side in canvas:
        room = max(0.0, 0.5 - 0.48 * size * min(canvas) / side)
        while True:
            centre = 0.5 + rng.uniform(-room, room)
            if all(abs(centre - border) >= _MIN_DOUBT for border in _SIDES):
                break
        place.append(centre)
    return place[0], place[1]


def _draw_pair(
    rng: random.Random,
    one: Shape,
    background: str,
    shades: tuple[RGB, RGB],
    canvas: tuple[int, int],
) -> tuple[Shape, Shape]:
    """Two shapes side by side or one above the other; left, then top, is named first."""
    other = _draw_shape(rng, background, shades, canvas)
    while other.colour == one.colour or other.kind == one.kind:
        other = _draw_shape(rng, background, shades, canvas)
    near, far = rng.uniform(0.22, 0.28), rng.uniform(0.72, 0.78)
    middle = rng.uniform(0.46, 0.54)
    beside = rng.random() < 0.7
    pair = []
    for shape, along in ((one, near), (other, far)):
        x, y = (along, middle) if beside else (middle, along)
        look = (shape.angle_deg, shape.variant, shape.rgb, shape.border)
        pair.append(Shape(shape.kind, shape.colour, x, y, rng.uniform(0.28, 0.46), *look))
    return pair[0], pair[1]
