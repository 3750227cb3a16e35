"""What a token of an image stands for: change pixels in a patch's box, and see whose features move.

The towers' layers are taken out, so that each feature comes from its own pixels alone; processor,
patches, pixel shuffling, pooling, packing and newlines are the families' own.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from lookm.kept import Box, Grid
from lookm.models.adapter import Adapter
from lookm.models.detail import Detail
from lookm.models.image_layouts import arranged
from lookm.models.preprocessing import PLAIN
from lookm.models.processor import Processor
from lookm.models.vision import _layers
from tests.lookm.models.test_processor import paired
from tests.lookm.models.toy_processors import PROCESSORS, without_torchvision
from tests.lookm.models.toys import TOYS

SIZES = [(190, 130), (90, 210)]
FIXED = ("llava", "paligemma")
GREY, WHITE = (110, 110, 110), (255, 255, 255)
REACH = 12  # pixels of our pictures that a resize looks at beyond those it stands for


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    without_torchvision(monkeypatch)

    def of(name: str) -> tuple[Processor, Any]:
        toy, (_, processor) = TOYS[name], paired(name)
        model = toy.model()
        adapter = Adapter(model, toy.row)
        for layer in _layers(model.model, adapter._language_model):
            if "Merger" not in type(layer).__name__:
                layer.forward = lambda hidden, *args, **kwargs: hidden
        return processor, adapter.vision

    return of


def patches(grid: Grid) -> Iterator[tuple[int, Box]]:
    """Each feature of a grid, and its part of the box."""
    left, top, right, bottom = grid.box
    across, down = (right - left) / grid.columns, (bottom - top) / grid.rows
    for row in range(grid.rows):
        for column in range(grid.columns):
            x, y = left + column * across, top + row * down
            yield grid.first + row * grid.stride + column, (x, y, x + across, y + down)


def middle(box: Box) -> tuple[int, int, int, int]:
    """A spot of 5 x 5 pixels in the middle of a patch."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return int(x) - 2, int(y) - 2, int(x) + 2, int(y) + 2


def inside(spot: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    return min(spot[:2]) >= 0 and spot[2] < size[0] and spot[3] < size[1]


def near(box: Box, spot: tuple[int, int, int, int], reach: int) -> bool:
    across = box[0] - reach < spot[2] and spot[0] < box[2] + reach
    return across and box[1] - reach < spot[3] and spot[1] < box[3] + reach


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_of_a_patch_change_its_token_and_no_other(
    name: str, num_images: int, size: tuple[int, int], build: Any
) -> None:
    processor, vision = build(name)
    if num_images > 1 and not processor.family.two_layouts:
        pytest.skip("an image among others is laid out as one alone")
    check(name, processor, vision, num_images, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [name for name in PROCESSORS if name not in FIXED])
def test_under_a_budget_too(name: str, size: tuple[int, int], build: Any) -> None:
    processor, vision = build(name)
    if name == "gemma3":  # crops are of 256 pixels at least
        size = (size[0] * 4, size[1] * 4) if size[0] < size[1] else (size[0] * 5, size[1] * 3)
    own = processor.image(Image.new("RGB", size), "own").num_tokens
    detail = Detail("high") if name == "gemma3" else Detail("auto", own - 1)
    assert processor.image(Image.new("RGB", size), "other", None, detail).num_tokens != own
    reach = 2 * REACH if name in ("llava_next", "llava_onevision") else REACH  # resized twice
    check(name, processor, vision, 1, size, detail, reach)


def check(
    name: str,
    processor: Processor,
    vision: Any,
    num_images: int,
    size: tuple[int, int],
    detail: Detail = PLAIN,
    reach: int = REACH,
) -> None:
    def seen(spot: tuple[int, int, int, int] | None) -> tuple[tuple[Grid, ...], torch.Tensor]:
        picture = Image.new("RGB", size, GREY)
        if spot is not None:
            ImageDraw.Draw(picture).rectangle(spot, WHITE)
        image = processor.image(picture, str(spot), None, detail)
        image = arranged([image] * num_images, processor.family)[0]
        return image.view.grids, vision.encode_image(image)

    grids, plain_FNE = seen(None)
    assert grids, "no grid is known"
    boxes = {token: box for grid in grids for token, box in patches(grid)}
    assert len(boxes) == sum(grid.rows * grid.columns for grid in grids), "a token in two patches"
    tried = 0
    for grid in grids:
        tokens = [token for token, _ in patches(grid)]
        for token, box in [*patches(grid)][:: 1 + (grid.rows * grid.columns > 9)]:
            spot = middle(box)
            if not inside(spot, size):
                continue  # padding
            tried += 1
            _, features_FNE = seen(spot)
            changes_N = (features_FNE - plain_FNE).abs().amax(dim=(0, 2))
            changed = set((changes_N > 1e-4).nonzero()[:, 0].tolist())
            strongest = max(tokens, key=lambda each: float(changes_N[each]))
            assert token == strongest, f"{token} at {box}: {sorted(changed)}"
            assert changed <= boxes.keys(), "a feature that is in no patch saw the picture"
            assert all(near(boxes[each], spot, reach) for each in changed)
    assert tried >= 3, "all padding"
    missing = plain_FNE.shape[1] - len(boxes)
    assert missing == 0 or name in ("llava_next", "llava_onevision"), "newlines"
