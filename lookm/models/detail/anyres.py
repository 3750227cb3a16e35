"""Pictures in the tiles of the resolution that suits them best.

    pinpoints  a whole view, and tiles                     LLaVA-NeXT
    onevision  the same; or one view, as among others      LLaVA-OneVision

The model chooses the tiles once more, by the size of the picture, and knows no bound on them: so
the picture is made smaller until fewer are chosen. Knows how the choice is made; no pixels.
"""

from collections.abc import Iterator
from typing import Any

from lookm.models.detail.choice import Step
from lookm.models.detail.ladder import Asked, Ladder, Size


def _pinpoints(asked: Asked) -> Iterator[Step]:
    """Of LLaVA-NeXT: the model chooses the tiles by the size of the picture, and knows no bound on
    them, so the picture is made smaller until it chooses fewer."""
    from transformers.image_processing_utils import select_best_resolution

    side = _tower_side(asked)
    pinpoints = asked.setting("image_grid_pinpoints")

    def step(size: Size, name: str = "") -> Step:
        best_height, best_width = select_best_resolution(size[::-1], pinpoints)
        num_tokens = asked.processor._get_number_of_features(size[1], size[0], side, side)
        num_tokens -= asked.processor.vision_feature_select_strategy == "default"
        pixels = side**2 + int(best_height) * int(best_width)
        return Step(num_tokens, pixels, name, size if name else None)

    own = step(asked.size)
    yield own
    reduced = [step(size, f"{size[0]}x{size[1]}") for size in _reduced(asked.size, pinpoints)]
    reduced.sort(key=lambda each: (-each.num_tokens, -each.pixels, each.name))
    fewest = own.num_tokens
    for each in reduced:
        if each.num_tokens < fewest:
            fewest = each.num_tokens
            yield each


def _reduced(size: Size, pinpoints: Any) -> Iterator[Size]:
    """The picture made smaller to fit each of the resolutions."""
    width, height = size
    for target_height, target_width in pinpoints:
        scale = min(target_width / width, target_height / height)
        if scale < 1:
            yield max(1, int(width * scale)), max(1, int(height * scale))


def _onevision(asked: Asked) -> Iterator[Step]:
    one_view = _onevision_view(asked)
    for step in _pinpoints(asked):
        if not step.name or step.num_tokens > one_view:
            yield step
    yield Step(one_view, _tower_side(asked) ** 2, "one view", among=True)


def _tower_side(asked: Asked) -> int:
    """Pixels of a view's side."""
    crop = asked.setting("crop_size") if asked.setting("do_center_crop") else None
    size = asked.setting("size")
    for given, name in ((crop, "height"), (size, "height"), (size, "shortest_edge")):
        if given is not None and given.get(name):
            return int(given[name])
    raise ValueError("the image processor says no size")


def _anyres_view(asked: Asked) -> int:
    return (_tower_side(asked) // int(asked.processor.patch_size)) ** 2


def _onevision_view(asked: Asked) -> int:
    """With its newline."""
    default = asked.processor.vision_feature_select_strategy == "default"
    return int(asked.processor.num_image_tokens) + 1 - int(default)


pinpoints = Ladder(
    _pinpoints,
    _anyres_view,
    "the fewest tiles",
    "as `auto`",
    "the picture is made smaller until it takes fewer tiles; less than its fewest is refused",
)
onevision = Ladder(
    _onevision,
    _onevision_view,
    "one view, as an image among others has it",
    "as `auto`",
    "the picture is made smaller until it takes fewer tiles, down to one view; less is refused. "
    "An image among others always is one view",
)
