"""The shapes of the demo world as polygons in a unit box.

Knows geometry: every kind is a list of closed rings of points within [-1, 1] x [-1, 1], y pointing
down; the first ring is filled, later ones are holes. Knows nothing of colours, pixels or canvases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

Point = tuple[float, float]
Ring = list[Point]


def _arc(radius: float, start_deg: float, stop_deg: float, points: int = 40) -> Ring:
    step = math.radians(stop_deg - start_deg) / points
    start = math.radians(start_deg)
    angles = [start + i * step for i in range(points + 1)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _circle(_variant: float) -> list[Ring]:
    return [_arc(1.0, 0, 360)]


def _ring(variant: float) -> list[Ring]:
    return [_arc(1.0, 0, 360), _arc(0.45 + 0.4 * variant, 0, 360)]


def _square(_variant: float) -> list[Ring]:
    return [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]]


def _triangle(variant: float) -> list[Ring]:
    if variant < 0.1:  # a right-angled one now and then
        return [[(-0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]]
    half = 0.75 + 0.25 * variant
    return [[(0.0, -0.95), (half, 0.85), (-half, 0.85)]]


def _star(variant: float) -> list[Ring]:
    inner = 0.36 + 0.16 * variant
    radii = [1.0 if i % 2 == 0 else inner for i in range(10)]
    angles = [math.radians(36 * i - 90) for i in range(10)]
    return [[(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]]


def _heart(variant: float) -> list[Ring]:
    if variant < 0.4:  # two discs on a triangle, as people draw it by hand
        left = [(x * 0.5 - 0.47, y * 0.5 - 0.4) for x, y in _arc(1.0, 140, 350)]
        right = [(x * 0.5 + 0.47, y * 0.5 - 0.4) for x, y in _arc(1.0, 190, 400)]
        return [[*left, *right, (0.0, 0.95)]]
    ring: Ring = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        ring.append((16 * math.sin(t) ** 3 / 17, -(y + 2.5) / 15.5))
    return [ring]


def _cross(variant: float) -> list[Ring]:
    w = 0.2 + 0.2 * variant
    top: Ring = [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w)]
    return [[*top, (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]]


def _diamond(variant: float) -> list[Ring]:
    half = 0.55 + 0.45 * variant
    return [[(0.0, -1.0), (half, 0.0), (0.0, 1.0), (-half, 0.0)]]


def _moon(variant: float) -> list[Ring]:
    # The disc minus an equal disc shifted right by `shift`; they meet at angle +-edge.
    shift = 0.55 + 0.3 * variant
    edge = math.degrees(math.acos(shift / 2))
    outer = _arc(1.0, edge, 360 - edge)
    inner = [(x + shift, y) for x, y in _arc(1.0, 180 + edge, 180 - edge)]
    return [[(x + 0.25, y) for x, y in (*outer, *inner)]]


def _arrow(variant: float) -> list[Ring]:
    w = 0.16 + 0.16 * variant
    neck = 0.0 + 0.2 * variant
    head: Ring = [(neck, -0.75), (1.0, 0.0), (neck, 0.75)]
    return [[(-1.0, -w), (neck, -w), *head, (neck, w), (-1.0, w)]]


_UNIT: Final[dict[str, Callable[[float], list[Ring]]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "diamond": _diamond,
    "ring": _ring,
    "moon": _moon,
    "arrow": _arrow,
}
KINDS: Final = tuple(_UNIT)

#: How far each kind may turn (degrees either way) and still deserve its name: a square on its
#: corner is a diamond.
MAX_TURN_DEG: Final[dict[str, float]] = {
    "circle": 0.0,
    "square": 14.0,
    "triangle": 180.0,
    "star": 180.0,
    "heart": 25.0,
    "cross": 180.0,
    "diamond": 8.0,
    "ring": 0.0,
    "moon": 180.0,
    "arrow": 180.0,
}


def outline(kind: str, variant: float, angle_deg: float) -> list[Ring]:
    """The rings of one kind, turned clockwise; `variant` in [0, 1] picks its proportions."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return [
        [(x * cos - y * sin, x * sin + y * cos) for x, y in ring] for ring in _UNIT[kind](variant)
    ]
