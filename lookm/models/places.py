"""Where a prompt's images lie among its tokens, and which patch each of these stands for.

The features of an image may have markers between them (row breaks, names of tiles): these count to
the image, and to no grid. Knows ids and `grids`; no pixels, no tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookm.kept import Box, Grid, View
from lookm.types import ImageInput


@dataclass(frozen=True, slots=True)
class PlacedGrid:
    """The patch at a row and a column is prompt token `first_token + row * row_stride + column`.

    All of them cover `box` of the picture as it was sent (left, top, right, bottom, in its pixels).
    It may reach outside, where the picture was padded.
    """

    first_token: int
    rows: int
    columns: int
    row_stride: int
    box: Box


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """One picture, `width` x `height` pixels as it was sent, as `num_tokens` of the prompt.

    Those are all from its first patch to its last, markers between them included.
    """

    width: int
    height: int
    first_token: int
    num_tokens: int
    grids: tuple[PlacedGrid, ...]


def places(
    ids: Sequence[int], images: Sequence[ImageInput], image_token_id: int
) -> tuple[PlacedImage, ...]:
    """The images of a prompt, in their order, `arranged` as it wants them."""
    at_N = np.flatnonzero(np.asarray(ids) == image_token_id)
    ends = np.cumsum([image.num_tokens for image in images], dtype=np.int64)
    of_each = np.split(at_N, ends)[: len(images)]
    return tuple(_place(image, at_F) for image, at_F in zip(images, of_each, strict=True))


def _place(image: ImageInput, at_F: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> PlacedImage:
    """`at_F`: the prompt's token of each feature."""

    def placed(grid: Grid) -> PlacedGrid:
        first = int(at_F[grid.first])
        stride = int(at_F[grid.first + grid.stride]) - first if grid.rows > 1 else grid.columns
        return PlacedGrid(first, grid.rows, grid.columns, stride, grid.box)

    view = image.view or View(0, 0)
    first, last = int(at_F[0]), int(at_F[-1])
    grids = tuple(map(placed, view.grids))
    return PlacedImage(view.width, view.height, first, last - first + 1, grids)
