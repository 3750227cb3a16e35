"""Vision towers that pause between their layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lookm import ImageInput
from lookm.models import vision
from lookm.models.adapter import Adapter
from lookm.models.tiles import Paused
from tests.lookm.models.toys import TOYS, prompt


def adapter(name: str) -> Adapter:
    toy = TOYS[name]
    return Adapter(toy.model(), toy.row)


def always() -> bool:
    return True


def in_pieces(of: Adapter, image: ImageInput, pause: Callable[[], bool] = always) -> Any:
    """The features, and how often the tower paused on its way to them."""
    num_pauses = 0
    while True:
        try:
            return of.vision.encode_image(image, pause), num_pauses
        except Paused:
            num_pauses += 1


@pytest.mark.parametrize("name", TOYS)
def test_features_with_a_pause_before_every_layer_are_the_same(name: str) -> None:
    ours = adapter(name)
    for image in prompt(TOYS[name], 2, seed=1).images:
        features, num_pauses = in_pieces(ours, image)
        assert num_pauses >= 1, "a tower of one layer proves nothing"
        assert torch.equal(features, ours.vision.encode_image(image))


def test_images_that_take_turns_do_not_mix() -> None:
    ours = adapter("llava")
    images = prompt(TOYS["llava"], vision.MAX_PAUSED, seed=2).images
    left = dict(enumerate(images))
    found = {}
    while left:
        for number, image in list(left.items()):
            try:
                found[number] = ours.vision.encode_image(image, always)
                del left[number]
            except Paused:
                pass
    for number, image in enumerate(images):
        assert torch.equal(found[number], ours.vision.encode_image(image))


def test_of_too_many_paused_images_the_oldest_begins_afresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vision, "MAX_PAUSED", 1)
    ours = adapter("llava")
    first, second = prompt(TOYS["llava"], 2, seed=3).images
    for image in (first, second):
        with pytest.raises(Paused):
            ours.vision.encode_image(image, always)
    assert list(ours.vision._layers._paused) == [second.digest]
    for image in (first, second):
        assert torch.equal(in_pieces(ours, image)[0], ours.vision.encode_image(image))
    assert not ours.vision._layers._paused


def test_a_pass_that_would_hold_too_much_does_not_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "MAX_HELD_BYTES", 1)
    ours = adapter("llava")
    assert in_pieces(ours, prompt(TOYS["llava"], 1, seed=4).images[0])[1] == 0


def test_an_error_in_the_tower_leaves_nothing_behind() -> None:
    ours = adapter("llava")
    image = prompt(TOYS["llava"], 1, seed=5).images[0]
    broken = ImageInput("broken", {"pixel_values": image.tensors["pixel_values"][:, :2]}, 4)
    with pytest.raises(RuntimeError):
        ours.vision.encode_image(broken)
    assert torch.equal(in_pieces(ours, image)[0], ours.vision.encode_image(image))
