"""Answers are true of their scenes."""

from __future__ import annotations

import random
import re

import pytest

from lookm.demo.palette import COLOURS
from lookm.demo.scenes import Scene, Shape, draw_scene
from lookm.demo.shapes import KINDS
from lookm.demo.tasks import BY_NAME, TASKS
from lookm.demo.words import World, a, join

RED_CIRCLE = Scene("circle", "red", x=0.2, y=0.2, size=0.3, background="white")
ORANGE_STAR = Scene("star", "orange", background="black")
PAIR = Scene("heart", "blue", x=0.25, size=0.3, second=Shape("moon", "green", x=0.75, size=0.3))
PLAIN = Scene(None, "grey", background="grey")

ONE, TWO = r"(Image 1|The first image)", r"(Image 2|The (second|last) image)"
IN_ONE, IN_TWO = ONE.lower(), TWO.lower()
TRUTH = {
    "what": f"{ONE} shows a red circle|{TWO} shows an orange star",
    "describe": f"{ONE} shows a red circle in the top left on a white background|"
    f"{TWO} shows an orange star in the middle on a black background",
    "colour": f"The circle in {IN_ONE} is red|The star in {IN_TWO} is orange",
    "shape": f"The shape in {IN_ONE} is a circle|The shape in {IN_TWO} is a star",
    "where": f"The circle in {IN_ONE} is in the top left|The star in {IN_TWO} is in the middle",
    "background": f"The background of {IN_ONE} is white|The background of {IN_TWO} is black",
    "colour of": "The circle is red|The star is orange",
    "shape of": "The red object is a circle|The orange object is a star",
    "place of": "The red circle is in the top left|The orange star is in the middle",
    "list colours": "Image 1 is red and image 2 is orange",
    "list shapes": "Image 1 is a circle and image 2 is a star",
    "describe all": r"Image 1 shows a red circle\. Image 2 shows an orange star",
    "two": "Image 1 shows a red circle and image 2 shows an orange star",
    "which": "The (red circle|circle|red object) is in image 1|"
    "The (orange star|star|orange object) is in image 2",
    "same": "Image 1 is (red|a circle) and image 2 is (orange|a star), so no|"
    "Image 2 is (orange|a star) and image 1 is (red|a circle), so no",
    "count": "The number of (circles|stars|red objects|orange objects) is 1",
    "objects": ".* so one object",
    "how many": "There are 2 images",
    "missing": "There is no image ([3-9]|1[0-6])",
    "note": "The code word is apple",
}


@pytest.mark.parametrize("name", TRUTH)
def test_answers_about_two_known_scenes_are_true(name: str) -> None:
    world = World((RED_CIRCLE, ORANGE_STAR), (("code word", "apple"),))
    for seed in range(60):
        answered = BY_NAME[name].ask(random.Random(seed), world)
        assert answered is not None
        assert re.fullmatch(rf"({TRUTH[name]})\.", answered[1]), answered


def test_every_object_an_answer_shows_exists() -> None:
    pattern = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")
    rng = random.Random(5)
    for num_images in (1, 2, 3, 8, 16):
        for _ in range(20):
            world = World(tuple(draw_scene(rng) for _ in range(num_images)))
            real = {(s.colour, s.kind) for scene in world.scenes for s in scene.shapes}
            for task in TASKS:
                answered = task.ask(rng, world)
                if answered is not None:
                    assert set(pattern.findall(answered[1])) <= real, (task.name, answered)


def test_judging_answers_judge_rightly() -> None:
    for seed in range(200):
        world = World((RED_CIRCLE, ORANGE_STAR, RED_CIRCLE))
        answered = BY_NAME["same"].ask(random.Random(seed), world)
        assert answered is not None
        first, second, verdict = re.split(r" and |, so ", answered[1][:-1])
        assert (verdict == "yes") == (first.split(" is ")[1] == second.split(" is ")[1])
        answered = BY_NAME["yes or no"].ask(random.Random(seed), world)
        assert answered is not None
        thing = re.search(r"an? ([a-z ]+?)(?: in |\?)", answered[0])
        assert thing is not None
        words = [word for word in thing[1].split() if word != "object"]
        assert answered[1].endswith("yes.") == all(word in answered[1] for word in words)


def test_two_objects_and_none_are_told() -> None:
    told = set()
    for seed in range(40):
        answered = BY_NAME["describe"].ask(random.Random(seed), World((PAIR, PLAIN)))
        assert answered is not None
        told.add(answered[1].split(" ", 2)[2])
    assert "is plain grey." in told
    assert (
        "shows a blue heart on the left and a green moon on the right on a white background."
        in told
    )


def test_the_news_never_comes_first() -> None:
    rng = random.Random(11)
    for _ in range(200):
        world = World(tuple(draw_scene(rng) for _ in range(4)), (("city", "oslo"),))
        for task in TASKS:
            answered = task.ask(rng, world)
            if answered is not None and task.name != "repeat":
                assert answered[1].split()[0] in {"Image", "The", "There", "You"}, answered


def test_english_is_kept() -> None:
    assert (a("red star"), a("orange star")) == ("a red star", "an orange star")
    assert (join(["x"]), join(["x", "y"]), join(["x", "y", "z"])) == ("x", "x and y", "x, y and z")
