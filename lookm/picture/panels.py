"""Images with their patches under veils: for each image one panel, or one a view where it has two.

Families that cut an image into tiles also look at the whole of it, so that two patches stand for
each place: these are two panels. What no patch covers (CLIP cuts the middle out) is hatched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from lookm.errors import RequestError
from lookm.picture.shares import Shares
from lookm.picture.veil import Pixels, diagonals, shaded, to_image, unseen
from lookm.positions import PlacedGrid, PlacedImage, Positions

LINE_FROM = 10  # pixels of a patch, from which on patches are set apart by a line
LINE, FRAME = 0.4, 170  # how thick these are, and how light what frames a picture


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A picture, and what it shows, in words."""

    image: Image.Image
    title: str
    caption: str

    @property
    def words(self) -> tuple[str, str]:
        return self.title, self.caption


def panels(
    positions: Positions, images: Sequence[Image.Image], shares: Shares, side: int = 448
) -> list[Panel]:
    """Of every image of a prompt, at most `side` pixels wide and high.

    `images` are those that were sent, in their order. Raises `RequestError` where they are not as
    many, or none of that shape.
    """
    if len(images) != len(positions.images):
        raise RequestError(
            f"the prompt has {len(positions.images)} images, {len(images)} are given"
        )
    made = []
    for number, (placed, given) in enumerate(zip(positions.images, images, strict=True), start=1):
        upright = ImageOps.exif_transpose(given).convert("RGB")
        _check_shape(placed, upright, number)
        for name, grids in _views(placed):
            title = f"Image {number}{name}"
            picture = _veiled(upright, placed, grids, shares, side)
            made.append(Panel(picture, title, _caption(grids, shares)))
    return made


def _check_shape(placed: PlacedImage, image: Image.Image, number: int) -> None:
    """Another resolution will do, for the same picture."""
    width, height = image.size
    if abs(width * placed.height - height * placed.width) > max(
        placed.width + placed.height, width + height
    ):
        raise RequestError(
            f"image {number} was {placed.width} x {placed.height} pixels, the one given is "
            f"{width} x {height}"
        )


def _views(placed: PlacedImage) -> list[tuple[str, list[PlacedGrid]]]:
    """The grids, those of the whole apart from tiles that cover the same places."""
    grids = list(placed.grids)
    if len(grids) < 2:
        return [("", grids)]
    first = grids[0].first_token < grids[1].first_token and _is_whole(grids[0], placed)
    whole = grids[0] if first else grids[-1]
    tiles = [grid for grid in grids if grid is not whole]
    return [(", the whole view", [whole]), (", in tiles", tiles)]


def _is_whole(grid: PlacedGrid, placed: PlacedImage) -> bool:
    return all(
        abs(edge - other) < 1
        for edge, other in zip(grid.box, (0, 0, placed.width, placed.height), strict=True)
    )


def tokens_of(grids: Sequence[PlacedGrid]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The prompt's tokens in the grids."""
    found = [
        grid.first_token
        + np.arange(grid.rows)[:, None] * grid.row_stride
        + np.arange(grid.columns)[None]
        for grid in grids
    ]
    return np.concatenate([each.ravel() for each in found]) if found else np.zeros(0, np.int64)


def _caption(grids: Sequence[PlacedGrid], shares: Shares) -> str:
    at_N = tokens_of(grids)
    if not len(at_N):
        return "where its patches lie is not known"
    shape = f"{grids[0].rows} x {grids[0].columns} patches"
    if len(grids) > 1:
        shape = f"{len(grids)} x {shape}"
    if at_N.min() < shares.num_unknown:
        return f"{shape}: what was kept is not all known"
    parts = [f"{shares.kept_T[at_N].mean():.0%} kept"]
    if shares.merges:
        parts.append(f"{shares.merged_T[at_N].mean():.0%} merged")
    return f"{shape}: {', '.join(parts)}"


def _veiled(
    upright: Image.Image,
    placed: PlacedImage,
    grids: Sequence[PlacedGrid],
    shares: Shares,
    side: int,
) -> Image.Image:
    factor = side / max(upright.size)
    size = max(1, round(upright.width * factor)), max(1, round(upright.height * factor))
    picture = np.asarray(upright.resize(size, Image.Resampling.LANCZOS), dtype=np.float64)
    if not grids:
        return to_image(picture)
    made, stripes = unseen(picture), diagonals(*size)
    across, down = size[0] / placed.width, size[1] / placed.height
    for grid in grids:
        left, top, right, bottom = grid.box
        # edges in whole pixels, shared by neighbours: no gaps and nothing veiled twice
        x_C = _edges(left * across, right * across, grid.columns, size[0])
        y_R = _edges(top * down, bottom * down, grid.rows, size[1])
        for row in range(grid.rows):
            for column in range(grid.columns):
                y, x = slice(y_R[row], y_R[row + 1]), slice(x_C[column], x_C[column + 1])
                token = grid.first_token + row * grid.row_stride + column
                made[y, x] = shaded(picture[y, x], shares, token, stripes[y, x])
        if (right - left) * across / grid.columns >= LINE_FROM:
            inside = made[y_R[0] : y_R[-1], x_C[0] : x_C[-1]]
            _line(inside, [edge - y_R[0] for edge in y_R[1:-1] if y_R[0] < edge < y_R[-1]])
            columns = [edge - x_C[0] for edge in x_C[1:-1] if x_C[0] < edge < x_C[-1]]
            _line(inside.transpose(1, 0, 2), columns)
    for edge in (made[:1], made[-1:], made[:, :1], made[:, -1:]):  # white pictures on white paper
        edge[:] = FRAME
    return to_image(made)


def _line(rows: Pixels, at: list[int]) -> None:
    """Grey, so that it shows on what is clear and on what is dark."""
    rows[at] = rows[at] * (1 - LINE) + 140 * LINE


def _edges(start: float, end: float, count: int, limit: int) -> list[int]:
    edges = np.linspace(start, end, count + 1).round().clip(0, limit)
    return [int(edge) for edge in edges]
