"""`lookm.show`: one sheet with images under veils, the prompt's text on shaded ground, a legend."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lookm.errors import RequestError
from lookm.kept import KeptPositions
from lookm.picture.legend import draw_legend
from lookm.picture.panels import Panel, panels
from lookm.picture.shares import Shares, shares_of
from lookm.picture.veil import INK, LINED, PAPER
from lookm.picture.words import Font, draw_cells, draw_words
from lookm.positions import Describer, Positions, decode, describe

WIDTH, MARGIN, GAP = 960, 24, 18
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc")


def show(
    kept: Any,
    images: Sequence[Image.Image] = (),
    *,
    layer: int | None = None,
    head: int | None = None,
    ids: Sequence[int] | None = None,
    processor: Any = None,
    title: str = "What was kept of the prompt",
    font: str | None = None,
    path: Any = None,
) -> Image.Image:
    """A picture of what was kept, written to `path` (a PNG) where one is given.

    `kept` is `lookm.positions.Positions`, an answer of the server that has positions, a
    `TokenEvent`'s, what `lookm.compress` returns, or the cache of `lookm.compressing`. The last
    three say nothing of what their tokens are: give the prompt's `ids` and a `lookm.Processor` as
    well, or see cells. `images` are those that were sent, in their order.

    By default the share of all layers and KV heads that kept a token; `layer` and `head` choose
    one. `font` is a TrueType file for scripts that pillow's own lacks. Raises `RequestError`.
    """
    positions = _positions(kept, images, ids, processor)
    shares = shares_of(positions, layer, head)
    is_ascii = all(word.isascii() for run in positions.text for word in run.tokens)
    large, small = (_font(font, size, is_ascii=is_ascii and title.isascii()) for size in (20, 14))
    width = WIDTH - 2 * MARGIN
    made = panels(positions, images, shares, side=_side(positions)) if images else []
    parts = [
        _lines([(title, INK, large), (_said(positions, shares, layer, head), LINED, small)], width),
        draw_legend(shares, small, width, cropped=_cropped(positions)),
    ]
    if made:
        parts += _rows(made, small, width)
    if positions.text:
        parts.append(_lines([("The text, token by token", INK, small)], width))
        parts.append(draw_words(positions, shares, small, width))
    elif not positions.images:
        parts.append(draw_cells(shares, width))
    sheet = _stacked(parts)
    if path is not None:
        sheet.save(path, format="PNG")
    return sheet


def _positions(
    kept: Any, images: Sequence[Image.Image], ids: Sequence[int] | None, processor: Any
) -> Positions:
    """What may be shown, as `Positions`, with what its tokens are if that is known."""
    bits = getattr(kept, "positions", kept)  # of an event, or of a cache
    if hasattr(kept, "kept_mask"):  # a `Compressed`
        from lookm.held import of_one_layer  # which imports torch

        bits = of_one_layer(kept)
    if isinstance(bits, KeptPositions):
        if ids is None or processor is None:
            if images:
                raise RequestError("which tokens the images are is not known: give ids, processor")
            return Positions(bits)
        if len(ids) != bits.num_tokens:
            raise RequestError(f"{len(ids)} ids are given for a prompt of {bits.num_tokens} tokens")
        inputs = [processor.image(image, str(n)) for n, image in enumerate(images)]
        describer: Describer = processor
        return describe(bits, list(ids), inputs, describer)
    return kept if isinstance(kept, Positions) else decode(kept)


def _said(positions: Positions, shares: Shares, layer: int | None, head: int | None) -> str:
    num_layers, num_heads, _ = positions.bits.kept.shape
    which = f"all {num_layers} layers" if layer is None else f"layer {layer} of {num_layers}"
    which += f", all {num_heads} KV heads" if head is None else f", KV head {head} of {num_heads}"
    said = f"{which}: {shares.kept_T.mean():.0%} of {positions.num_tokens:,} tokens kept"
    return said + (f", {shares.merged_T.mean():.0%} merged" if shares.merges else "")


def _cropped(positions: Positions) -> bool:
    """Whether part of an image is in none of its grids."""
    return any(
        image.grids
        and (
            min(grid.box[0] for grid in image.grids) > 0.5
            or min(grid.box[1] for grid in image.grids) > 0.5
            or max(grid.box[2] for grid in image.grids) < image.width - 0.5
            or max(grid.box[3] for grid in image.grids) < image.height - 0.5
        )
        for image in positions.images
    )


def _side(positions: Positions) -> int:
    """Of a panel: one or two images are large, many are small."""
    count = sum(1 + (len(image.grids) > 1) for image in positions.images)
    columns = min(4, max(2, count))
    return (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns


def _rows(made: Sequence[Panel], font: Font, width: int) -> list[Image.Image]:
    """Panels side by side, as many as fit, each over its caption."""
    rows: list[list[tuple[int, Panel]]] = []
    x = width
    for panel in made:
        needed = max(panel.image.width, *(int(font.getlength(text)) for text in panel.words))
        if x + needed > width:
            rows.append([])
            x = 0
        rows[-1].append((x, panel))
        x += needed + GAP
    return [_row(row, font, width) for row in rows]


def _row(row: Sequence[tuple[int, Panel]], font: Font, width: int) -> Image.Image:
    """Panels at their places."""
    height = max(panel.image.height for _, panel in row)
    sheet = Image.new("RGB", (width, height + 44), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, panel in row:
        sheet.paste(panel.image, (x, 0))
        draw.text((x, panel.image.height + 5), panel.title, fill=INK, font=font)
        draw.text((x, panel.image.height + 23), panel.caption, fill=LINED, font=font)
    return sheet


def _lines(lines: Sequence[tuple[str, tuple[int, int, int], Font]], width: int) -> Image.Image:
    heights = [int(font.getbbox("Ayg|")[3]) + 6 for _, _, font in lines]
    sheet = Image.new("RGB", (width, sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = 0
    for (text, colour, font), height in zip(lines, heights, strict=True):
        draw.text((0, y), text, fill=colour, font=font)
        y += height
    return sheet


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1) + 2 * MARGIN
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    y = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, y))
        y += part.height + GAP
    return sheet


def _font(path: str | None, size: int, *, is_ascii: bool) -> Font:
    """Pillow's own is ASCII's; for more, one of those that most systems have."""
    for name in [path] if path else [] if is_ascii else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError as error:
            if path:
                raise RequestError(f"{path} is no font: {error}") from error
    return ImageFont.load_default(size)
