"""Pictures at their own shape, as large as a bound lets them be.

    edge   on the longest edge    Pixtral, Mistral 3 (LLaVA 1.5, of Pixtral's row, is `fixed`)
    area   on all pixels          Qwen-VL

Knows how processors round; no pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from lookm.models.detail.choice import Step
from lookm.models.detail.ladder import Asked, Ladder, Size, fixed


def _edge(asked: Asked) -> Iterator[Step]:
    if not _is_native(asked):
        yield from fixed.steps(asked)
        return
    patch, long = _patch(asked), max(asked.size)
    own = min(int(asked.setting("size")["longest_edge"]), long)
    fewest = 0
    for edge in range(own, 0, -1):
        scale = max(1.0, long / edge)
        columns, rows = (math.ceil(math.floor(side / scale) / patch) for side in asked.size)
        num_tokens = rows * columns
        if edge < own and not 0 < num_tokens < fewest:
            continue
        fewest = num_tokens
        settings = {"size": {"longest_edge": edge}} if edge < own else {}
        name = f"{columns}x{rows}" if edge < own else ""
        yield Step(num_tokens, num_tokens * patch**2, name, settings=settings)


def _is_native(asked: Asked) -> bool:
    """Whether it sees pictures at their own shape; others in LLaVA's form see squares."""
    return hasattr(asked.processor, "spatial_merge_size")


def _patch(asked: Asked) -> int:
    """Pixels of a token's side."""
    return int(asked.processor.patch_size * asked.processor.spatial_merge_size)


def _area(asked: Asked) -> Iterator[Step]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    width, height = asked.size
    side = int(asked.setting("patch_size")) * int(asked.setting("merge_size"))
    size = asked.setting("size")
    least, most = int(size["shortest_edge"]), int(size["longest_edge"])

    def fitted(least: int, most: int) -> Size:
        rows, columns = smart_resize(height, width, side, least, most)
        return columns // side, rows // side

    columns, rows = fitted(least, most)
    fewest = columns * rows
    yield Step(fewest, fewest * side**2)
    for budget in range(fewest - 1, 0, -1):
        pixels = budget * side**2
        bounds = {"shortest_edge": least if least <= pixels else 1, "longest_edge": pixels}
        columns, rows = fitted(bounds["shortest_edge"], pixels)
        if columns * rows < fewest:
            fewest = columns * rows
            settings = {"size": bounds}
            yield Step(fewest, fewest * side**2, f"{columns}x{rows}", settings=settings)


def _one_token(_: Asked) -> int:
    return 1


edge = Ladder(
    _edge,
    lambda asked: 1 if _is_native(asked) else fixed.fewest(asked),
    "at most 512 x 512 pixels, by a smaller longest edge",
    "as `auto`",
    "the longest edge that keeps to it; one token at least",
)
edge_or_fixed = replace(
    edge,
    low=f"Pixtral: {edge.low}. LLaVA 1.5: {fixed.low}",
    budget=f"Pixtral: {edge.budget}. LLaVA 1.5: {fixed.budget}",
)
area = Ladder(
    _area,
    _one_token,
    "at most 512 x 512 pixels, by `max_pixels`",
    "as `auto`",
    "the `max_pixels` that keep to it (and `min_pixels`, where these are more); one token at least",
)
