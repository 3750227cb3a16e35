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
from lookm.models.image_layouts import arranged
from lookm.models.processor import Processor
from lookm.models.vision import _layers
from tests.lookm.models.test_processor import FEATURE, Config
from tests.lookm.models.toy_processors import PROCESSORS, without_torchvision
from tests.lookm.models.toys import TOYS

SIZES = [(190, 130), (90, 210)]
GREY, WHITE = (110, 110, 110), (255, 255, 255)
REACH = 12  # pixels of our pictures that a resize looks at beyond those it stands for


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    without_torchvision(monkeypatch)

    def of(name: str) -> tuple[Processor, Any]:
        toy, hf_processor = TOYS[name], PROCESSORS[name]()
        token = hf_processor.tokenizer.convert_tokens_to_ids(FEATURE.get(name, "<image>"))
        processor = Processor(hf_processor, Config(toy.row.model_type, token), name=name)
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


def near(box: Box, spot: tuple[int, int, int, int]) -> bool:
    across = box[0] - REACH < spot[2] and spot[0] < box[2] + REACH
    return across and box[1] - REACH < spot[3] and spot[1] < box[3] + REACH


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_of_a_patch_change_its_token_and_no_other(
    name: str, num_images: int, size: tuple[int, int], build: Any
) -> None:
    processor, vision = build(name)
    if num_images > 1 and not processor.family.two_layouts:
        pytest.skip("an image among others is laid out as one alone")

    def seen(spot: tuple[int, int, int, int] | None) -> tuple[tuple[Grid, ...], torch.Tensor]:
        picture = Image.new("RGB", size, GREY)
        if spot is not None:
            ImageDraw.Draw(picture).rectangle(spot, WHITE)
        image = processor.image(picture, str(spot))
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
            assert all(near(boxes[each], spot) for each in changed)
    assert tried >= 3, "all padding"
    missing = plain_FNE.shape[1] - len(boxes)
    assert missing == 0 or name in ("llava_next", "llava_onevision"), "newlines"
