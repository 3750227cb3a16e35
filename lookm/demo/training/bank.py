"""Rendered scenes on disk, so that training never waits for PIL.

Knows scenes, the size the image processor produces, and where patches lie. Knows nothing of models.
A bank is two `.npy` files (pixels, patch labels) in the working directory, made once per seed.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookm.demo.palette import COLOURS
from lookm.demo.scenes import (
    PLACES,
    TEXTURES,
    Scene,
    Split,
    mask_of,
    render,
    rings_of,
    scene,
)
from lookm.demo.shapes import KINDS

IMAGE_PX: Final = 112
PATCH_PX: Final = 14
GRID: Final = IMAGE_PX // PATCH_PX
PATCHES: Final = GRID * GRID

#: What a patch can show; `-100` is "no answer" to the cross entropy.
KIND_LABELS: Final = (*KINDS, "background", "plain")
COLOUR_LABELS: Final = (*COLOURS, *TEXTURES)
PLACE_LABELS: Final = tuple(place for row in PLACES for place in row)
NO_LABEL: Final = -100
_MIN_COVER: Final = 0.25  # of a patch, to count as showing the object

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Bank:
    """`pixels` uint8 [N, IMAGE_PX, IMAGE_PX, 3]; `labels` int8 [N, PATCHES, 3], see `labels_of`."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int8]


def pixels_of(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The uint8 [IMAGE_PX, IMAGE_PX, 3] pixels that the image processor makes of a picture."""
    square = picture.convert("RGB").resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.uint8)


def labels_of(drawn: Scene) -> npt.NDArray[np.int8]:
    """What each patch shows, int8 [PATCHES, 3]: its object's kind, colour and place."""
    labels = np.full((PATCHES, 3), NO_LABEL, dtype=np.int8)
    labels[:, 0] = KIND_LABELS.index("background" if drawn.shapes else "plain")
    labels[:, 1] = COLOUR_LABELS.index(drawn.background)
    fine_px = 4 * GRID * 2
    for shape in drawn.shapes:
        rings = [
            [(x * fine_px, y * fine_px) for x, y in ring] for ring in rings_of(shape, drawn.canvas)
        ]
        cover = mask_of(rings, (fine_px, fine_px)).resize((GRID, GRID), Image.Resampling.BOX)
        share = np.asarray(cover, dtype=np.float32).reshape(-1) / 255
        shown = share >= min(_MIN_COVER, 0.7 * float(share.max()))
        labels[shown, 0] = KIND_LABELS.index(shape.kind)
        labels[shown, 1] = COLOUR_LABELS.index(shape.colour)
        labels[shown, 2] = PLACE_LABELS.index(shape.place)
    return labels


def _draw(job: tuple[Split, int, int, int]) -> tuple[Array, Array]:
    split, seed, start, stop = job
    scenes = [scene(split, seed, number) for number in range(start, stop)]
    pixels = np.stack([pixels_of(render(drawn)) for drawn in scenes])
    return pixels, np.stack([labels_of(drawn) for drawn in scenes])


def open_bank(
    folder: Path, split: Split, seed: int, size: int, workers: int = 2, chunk: int = 500
) -> Bank:
    """The first `size` scenes of a split, rendered now if the folder does not hold them yet."""
    stem = f"{split}-{seed}-{size}"
    paths = folder / f"{stem}-pixels.npy", folder / f"{stem}-labels.npy"
    if not paths[1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(split, seed, at, min(at + chunk, size)) for at in range(0, size, chunk)]
        shape = (size, IMAGE_PX, IMAGE_PX, 3)
        pixels = np.lib.format.open_memmap(paths[0], mode="w+", dtype=np.uint8, shape=shape)
        labels = np.empty((size, PATCHES, 3), dtype=np.int8)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for job, (drawn, shown) in zip(jobs, pool.imap(_draw, jobs), strict=True):
                pixels[job[2] : job[3]], labels[job[2] : job[3]] = drawn, shown
        pixels.flush()
        np.save(paths[1], labels)
    return Bank(np.load(paths[0], mmap_mode="r"), np.load(paths[1]))
