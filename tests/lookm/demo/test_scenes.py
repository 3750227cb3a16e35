"""Scenes: the same seed gives the same picture, splits never meet, words match pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lookm.demo.palette import COLOURS, SHADES, rgb_of
from lookm.demo.scenes import Scene, Shape, Split, render, scene
from lookm.demo.shapes import KINDS, outline
from lookm.demo.training.bank import IMAGE_PX, KIND_LABELS, PLACE_LABELS, labels_of, pixels_of


def test_a_seed_names_a_picture_for_ever() -> None:
    for number in range(20):
        one, other = scene("train", 3, number), scene("train", 3, number)
        assert one == other
        assert render(one).tobytes() == render(other).tobytes()


def test_train_and_test_scenes_never_meet() -> None:
    """Plain ones may: there are only so many plain red squares of paper."""

    def objects(split: Split) -> list[Scene]:
        drawn = (scene(split, seed, number) for seed in (0, 1) for number in range(300))
        return [each for each in drawn if each.shapes]

    train, test = objects("train"), objects("test")
    assert len(set(train)) == len(train)
    assert not set(train) & set(test)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_its_box_and_shows_its_colour(kind: str) -> None:
    picture = np.asarray(render(Scene(kind=kind, colour="red", size=0.8)))
    red = (picture == (255, 0, 0)).all(axis=-1)
    assert 0.1 < red.mean() < 0.6
    assert (picture[0, 0] == 255).all()
    points = [point for ring in outline(kind, 0.5, 0.0) for point in ring]
    assert all(abs(x) <= 1.3 and abs(y) <= 1.3 for x, y in points)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_scene_is_one_colour(colour: str) -> None:
    picture = np.asarray(render(Scene(kind=None, colour=colour)))
    assert (picture == rgb_of(colour)).all()


def test_shades_of_different_words_are_different() -> None:
    shades = [shade for listed in SHADES.values() for shade in listed]
    assert len(set(shades)) == len(shades)


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [(0.2, 0.2, "top left"), (0.5, 0.5, "middle"), (0.8, 0.5, "right"), (0.5, 0.9, "bottom")],
)
def test_places_follow_the_centre(x: float, y: float, place: str) -> None:
    shape = Shape("star", "blue", x=x, y=y, size=0.3)
    assert shape.place == place
    labels = labels_of(Scene("star", "blue", x=x, y=y, size=0.3))
    on_shape = labels[labels[:, 0] == KIND_LABELS.index("star")]
    assert len(on_shape) > 0
    assert set(on_shape[:, 2]) == {PLACE_LABELS.index(place)}


def test_pictures_of_any_shape_become_one_square() -> None:
    for size in ((64, 64), (640, 480), (30, 500)):
        assert pixels_of(Image.new("P", size)).shape == (IMAGE_PX, IMAGE_PX, 3)


def test_importing_the_demo_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, lookm.demo as demo, lookm.demo.scenes\n"
        "assert demo.checkpoint_path().name == 'checkpoint' and demo.NAME == 'llava-demo'\n"
        "heavy = {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", _HEAVY_PARENT)


#: `lookm/__init__` itself may load torch; the demo must add nothing to that.
_HEAVY_PARENT = "['torch']"
