"""Which part of a picture each token of an image stands for: grids of patches, and what they cover.

One small function for each way in which a family's processor cuts, pads, crops and tiles; a row of
`families` names it. It speaks of an image's features in their order, and of pixels of the picture
it was given; markers between features (row breaks, names of tiles) are none of it. Knows
processors' settings; no prompts, no weights.

    whole      one square grid over all of it        Gemma 3, PaliGemma
    cropped    resized, the middle cut out           LLaVA 1.5
    sized      a grid of the picture's own shape     Pixtral, Mistral 3
    merged     the same, from Qwen-VL's `grid_thw`
    anyres     a whole view, then tiles with a newline feature after each row    LLaVA-NeXT
    onevision  the same with fewer rows where they are many; among others padded to a square
    tiled      tiles of equal size, then a whole view                            InternVL
    named      the same, laid out as the prompt's text says                      Idefics3, SmolVLM
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lookm.kept import Box, Grid
from lookm.models.detail import setting
from lookm.types import Array

logger = logging.getLogger(__name__)

_CELL = re.compile(r"<row_(\d+)_col_(\d+)>")


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as its processor left it: of what size it was, and what became of it.

    `size` is width and height; `text` stands for it in the prompt; `processor` is transformers',
    `settings` are those it was called with.
    """

    size: tuple[int, int]
    num_tokens: int
    tensors: Mapping[str, Array]
    text: str
    processor: Any
    settings: Mapping[str, Any]

    @property
    def box(self) -> Box:
        """All of it."""
        return (0, 0, *self.size)

    def setting(self, name: str) -> Any:
        """One of the image processor's."""
        return setting(self.processor, self.settings, name)


Layout = Callable[[Seen], list[Grid]]


def grids_of(seen: Seen, layout: Layout, sent: tuple[int, int]) -> tuple[Grid, ...]:
    """By a family's `layout`, of a picture that was sent in another size. None where it does not
    understand the checkpoint's settings: a picture of what was kept is no reason to refuse one."""
    try:
        grids = layout(seen)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        logger.debug("where the tokens of an image lie is not known", exc_info=True)
        return ()
    fit = all(
        grid.first + (grid.rows - 1) * grid.stride + grid.columns <= seen.num_tokens
        and min(grid.rows, grid.columns) > 0
        for grid in grids
    )
    across, down = (new / old for new, old in zip(sent, seen.size, strict=True))
    return tuple(_scaled(grid, across, down) for grid in grids) if fit else ()


def _scaled(grid: Grid, across: float, down: float) -> Grid:
    left, top, right, bottom = grid.box
    return replace(grid, box=(left * across, top * down, right * across, bottom * down))


def whole(seen: Seen) -> list[Grid]:
    """One square grid, for the picture is squeezed into a square; then crops along its longer side,
    where the processor makes any (Gemma 3's pan and scan)."""
    pixels, (width, height) = seen.tensors["pixel_values"], seen.size
    num_crops = len(pixels) - 1
    count, boxes = seen.num_tokens // (num_crops + 1), [seen.box]
    for n in range(num_crops):
        if width >= height:
            step = math.ceil(width / num_crops)
            boxes.append((n * step, 0, min((n + 1) * step, width), height))
        else:
            step = math.ceil(height / num_crops)
            boxes.append((0, n * step, width, min((n + 1) * step, height)))
    return [_square(n * count, _side(count), box) for n, box in enumerate(boxes)]


def cropped(seen: Seen) -> list[Grid]:
    """Resized, and its middle cut out; perhaps padded to a square before. Pixtral's are `sized`."""
    if "image_sizes" in seen.tensors:
        return sized(seen)
    side = _side(seen.num_tokens)
    first = seen.num_tokens - side**2  # a class token, where the model keeps it
    width, height = canvas = _squared(seen.size) if seen.setting("do_pad") else seen.size
    offset = _offset(canvas, seen.size)
    resized = _resized(canvas, seen.setting("size")) if seen.setting("do_resize") else canvas
    cut = resized
    if seen.setting("do_center_crop"):
        crop = seen.setting("crop_size")
        cut = crop["width"], crop["height"]
    left, top = ((have - want) // 2 for have, want in zip(resized, cut, strict=True))
    across, down = width / resized[0], height / resized[1]
    box = (left * across, top * down, (left + cut[0]) * across, (top + cut[1]) * down)
    return [_square(first, side, _moved(box, offset))]


def sized(seen: Seen) -> list[Grid]:
    """As many rows and columns as the picture has patches, resized but not cropped."""
    height, width = (int(side) for side in seen.tensors["image_sizes"][0])
    columns = round(math.sqrt(seen.num_tokens * width / height))
    return [Grid(0, seen.num_tokens // columns, columns, columns, seen.box)]


def merged(seen: Seen) -> list[Grid]:
    """Patches merged two by two (`merge_size`)."""
    _, rows, columns = (int(n) for n in seen.tensors["image_grid_thw"][0])
    merge = int(seen.setting("merge_size"))
    return [Grid(0, rows // merge, columns // merge, columns // merge, seen.box)]


def anyres(seen: Seen) -> list[Grid]:
    """A whole view; then tiles of the picture at its own aspect, cut to what has any of it."""
    side = seen.tensors["pixel_values"].shape[-1] // seen.processor.patch_size
    return [_square(0, side, seen.box), _unpadded(seen, side)]


def onevision(seen: Seen) -> list[Grid]:
    """`anyres`, its rows and columns interpolated to fewer where they would be too many."""
    side = _side(seen.processor.num_image_tokens)
    if seen.num_tokens <= side**2 + 1:  # among others: one view, padded, and a newline
        canvas = _squared(seen.size)
        return [_square(0, side, _moved((0, 0, *canvas), _offset(canvas, seen.size)))]
    grid = _unpadded(seen, side)
    rows, columns = grid.rows, grid.columns
    limit = int(seen.processor.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (limit * side**2))
    if ratio > 1.1:  # as the model does
        rows, columns = int(rows // ratio), int(columns // ratio)
    return [_square(0, side, seen.box), Grid(grid.first, rows, columns, columns + 1, grid.box)]


def tiled(seen: Seen) -> list[Grid]:
    """Tiles row by row, of the picture squeezed into so many, then a whole view."""
    num_views = len(seen.tensors["pixel_values"])
    if num_views == 1:
        return [_square(0, _side(seen.num_tokens), seen.box)]
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    size, (width, height) = seen.setting("size"), seen.size
    bounds = seen.setting("min_patches"), seen.setting("max_patches")
    tile = size["height"], size["width"]
    columns, rows = get_optimal_tiled_canvas((height, width), tile, *bounds)
    return _tiles(seen, int(rows), int(columns))


def named(seen: Seen) -> list[Grid]:
    """Tiles under their names, `<row_1_col_2>`, then a whole view."""
    cells = [(int(row), int(column)) for row, column in _CELL.findall(seen.text)]
    rows, columns = (max(numbers) for numbers in zip(*cells, strict=True)) if cells else (0, 0)
    return _tiles(seen, rows, columns)


def _tiles(seen: Seen, rows: int, columns: int) -> list[Grid]:
    (width, height), count = seen.size, seen.num_tokens // (rows * columns + 1)
    boxes: list[Box] = [
        (
            column * width / columns,
            row * height / rows,
            (column + 1) * width / columns,
            (row + 1) * height / rows,
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return [_square(n * count, _side(count), box) for n, box in enumerate([*boxes, seen.box])]


def _unpadded(seen: Seen, side: int) -> Grid:
    """The tiles of `anyres` as one grid with a newline feature after each row.

    The picture, at its own aspect, is in the middle of tiles of `side` patches each; rows and
    columns of patches that are padding are left out, as the model does (`unpad_image`).
    """
    from transformers.image_processing_utils import select_best_resolution

    width, height = seen.size
    best = select_best_resolution((height, width), seen.setting("image_grid_pinpoints"))
    target_height, target_width = (int(each) for each in best)
    patch = seen.tensors["pixel_values"].shape[-1] / side
    rows, columns = round(target_height / patch), round(target_width / patch)
    scale = min(target_width / width, target_height / height)
    new_width = min(math.ceil(width * scale), target_width)
    new_height = min(math.ceil(height * scale), target_height)
    skip_rows = skip_columns = 0
    if width / height > columns / rows:
        skip_rows = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        skip_columns = (columns - int(round(width * (rows / height), 7))) // 2
    left, top = (target_width - new_width) // 2, (target_height - new_height) // 2
    across, down = width / new_width, height / new_height
    box = (
        (skip_columns * patch - left) * across,
        (skip_rows * patch - top) * down,
        ((columns - skip_columns) * patch - left) * across,
        ((rows - skip_rows) * patch - top) * down,
    )
    rows, columns = rows - 2 * skip_rows, columns - 2 * skip_columns
    return Grid(side**2, rows, columns, columns + 1, box)


def _square(first: int, side: int, box: Box) -> Grid:
    return Grid(first, side, side, side, box)


def _side(count: int) -> int:
    return math.isqrt(count)


def _squared(size: tuple[int, int]) -> tuple[int, int]:
    return max(size), max(size)


def _offset(canvas: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Where a picture is in a canvas it is in the middle of."""
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def _moved(box: Box, offset: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return left - offset[0], top - offset[1], right - offset[0], bottom - offset[1]


def _resized(size: tuple[int, int], target: Mapping[str, int]) -> tuple[int, int]:
    """Width and height after a resize to a shortest edge, or to a width and a height."""
    edge = target.get("shortest_edge")
    if not edge:
        return target["width"], target["height"]
    short, long = min(size), max(size)
    resized = edge, int(edge * long / short)
    return resized if size[0] <= size[1] else (resized[1], resized[0])
