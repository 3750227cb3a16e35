"""One image to each family, as its processor would give it: tensors, and the ids in its place."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers.models.llava_next.modeling_llava_next import select_best_resolution

from tests.lookm.tiny import IMAGE

OPEN, CLOSE, BREAK, GRID = 90, 91, 92, 93  # markers around and inside an image
PINPOINTS = [[24, 48], [48, 24], [48, 48]]

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Image:
    """One image as a processor gives it: `tensors`, and the ids in its place."""

    tensors: Tensors
    ids: list[int]


def _pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def square(num_tokens: int, *, marked: bool = False) -> Callable[[np.random.Generator], Image]:
    ids = [IMAGE] * num_tokens
    ids = [OPEN, *ids, CLOSE] if marked else ids
    return lambda rng: Image({"pixel_values": _pixels(rng, 1, 3, 24, 24)}, ids)


def tiles(rng: np.random.Generator) -> Image:
    """InternVL: one to three tiles, four tokens each."""
    num = int(rng.integers(1, 4))
    return Image({"pixel_values": _pixels(rng, num, 3, 32, 32)}, [OPEN, *[IMAGE] * 4 * num, CLOSE])


def anyres(rng: np.random.Generator) -> Image:
    """LLaVA-NeXT: a whole view, and tiles with a newline feature after each row of patches."""
    height, width = (int(n) for n in rng.integers(16, 60, 2))
    best = select_best_resolution((height, width), PINPOINTS)
    num_tiles = best[0] * best[1] // 24**2
    tensors = {
        "pixel_values": _pixels(rng, 1, 1 + num_tiles, 3, 24, 24),
        "image_sizes": np.array([[height, width]]),
    }
    return Image(tensors, [IMAGE] * (9 + _unpadded(height, width, best)))


def _unpadded(height: int, width: int, best: tuple[int, int]) -> int:
    """Patches of the tiles that are not padding, plus one newline a row."""
    rows, columns = best[0] // 8, best[1] // 8
    if width / height > columns / rows:
        new = int(round(height * (columns / width), 7))
        rows -= (rows - new) // 2 * 2
    else:
        new = int(round(width * (rows / height), 7))
        columns -= (columns - new) // 2 * 2
    return rows * columns + rows


def onevision(rng: np.random.Generator) -> Image:
    image = anyres(rng)
    return Image({**image.tensors, "batch_num_images": np.array([1])}, image.ids)


def onevision_among(image: Image) -> Image:
    tensors = {
        "pixel_values": image.tensors["pixel_values"][:, :1] * 0.5,  # another resize
        "image_sizes": image.tensors["image_sizes"],
        "batch_num_images": np.array([2]),
    }
    return Image(tensors, [IMAGE] * 10)


def grid(rng: np.random.Generator) -> Image:
    """Qwen-VL: patches of 4 x 4 x 2 frames, merged two by two."""
    rows, columns = (2 * int(n) for n in rng.integers(1, 4, 2))
    tensors = {
        "pixel_values": _pixels(rng, rows * columns, 3 * 2 * 4 * 4),
        "image_grid_thw": np.array([[1, rows, columns]]),
    }
    return Image(tensors, [OPEN, *[IMAGE] * (rows * columns // 4), CLOSE])


def split(rng: np.random.Generator) -> Image:
    """Idefics3: tiles and a whole view, four tokens each, each after its own marker."""
    num = int(rng.integers(1, 4))
    tensors = {
        "pixel_values": _pixels(rng, 1, num, 3, 32, 32),
        "pixel_attention_mask": np.ones((1, num, 32, 32), dtype=np.int64),
    }
    tile = [OPEN, GRID, *[IMAGE] * 4]
    return Image(tensors, [*tile * num, CLOSE])


def sized(merge: int) -> Callable[[np.random.Generator], Image]:
    """Pixtral: as many rows and columns as the image has, a break token after each row."""

    def image(rng: np.random.Generator) -> Image:
        rows, columns = (int(n) for n in rng.integers(1, 4, 2))
        height, width = rows * 8 * merge, columns * 8 * merge
        tensors = {
            "pixel_values": _pixels(rng, 1, 3, height, width),
            "image_sizes": np.array([[height, width]]),
        }
        ids = [token for _ in range(rows) for token in (*[IMAGE] * columns, BREAK)]
        return Image(tensors, [*ids[:-1], CLOSE])

    return image
