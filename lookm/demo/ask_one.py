"""Questions about one picture, or one object, of a world: a small function each.

Knows scenes and words. See `tasks` for the rules that every question keeps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from lookm.demo.scenes import Scene, Shape
from lookm.demo.words import World, a, at, content, description, name, refer

Answered = tuple[str, str]


def one_of(rng: random.Random, forms: str) -> str:
    """One of the wordings, which bars separate."""
    return rng.choice(forms.split("|"))


def spelling(rng: random.Random) -> str:
    """British or American."""
    return rng.choice(("colour", "color"))


def objects_of(world: World) -> list[tuple[int, Shape]]:
    """Every object with the index of its picture."""
    return [(i, seen) for i, scene in enumerate(world.scenes) for seen in scene.shapes]


def unique(
    rng: random.Random, world: World, by: Callable[[Shape], str]
) -> tuple[int, Shape] | None:
    """An object whose name, in the sense of `by`, no other object shares; and its picture."""
    objects = objects_of(world)
    seen = Counter(by(item) for _, item in objects)
    rows = [(i, item) for i, item in objects if seen[by(item)] == 1]
    return rng.choice(rows) if rows else None


def pick(rng: random.Random, world: World) -> tuple[Scene, str, str]:
    """A picture, and how question and answer name it."""
    index = rng.randrange(len(world.scenes))
    return world.scenes[index], *refer(rng, index, len(world.scenes))


def pick_single(rng: random.Random, world: World) -> tuple[Shape, str, str] | None:
    """A picture with one object: the object, and how question and (within it) answer name it."""
    rows = [i for i, scene in enumerate(world.scenes) if len(scene.shapes) == 1]
    if not rows:
        return None
    index = rng.choice(rows)
    question, subject = refer(rng, index, len(world.scenes))
    return world.scenes[index].shapes[0], question, subject[0].lower() + subject[1:]


def what(rng: random.Random, world: World) -> Answered | None:
    """What is in image 2?"""
    scene, question, subject = pick(rng, world)
    forms = (
        "What is in {0}?|What is in {0}?|What does {0} show?|What do you see in {0}?|What is {0}?|"
        "What can you see in {0}?|What object is in {0}?|What is shown in {0}?|What's in {0}?"
    )
    return one_of(rng, forms).format(question), f"{subject} {content(scene)}."


def describe(rng: random.Random, world: World) -> Answered | None:
    """Describe image 2."""
    scene, question, subject = pick(rng, world)
    forms = (
        "Describe {0}.|Describe {0}.|Describe {0} in detail.|Can you describe {0}?|"
        "Tell me about {0}.|Give a description of {0}."
    )
    return one_of(rng, forms).format(question), f"{subject} {description(scene)}."


def colour(rng: random.Random, world: World) -> Answered | None:
    """What colour is the object in image 2?"""
    if rng.random() < 0.1:
        scene, question, subject = pick(rng, world)
        if not scene.shapes:
            return f"What {spelling(rng)} is {question}?", f"{subject} is plain {scene.colour}."
    found = pick_single(rng, world)
    if found is None:
        return None
    seen, question, subject = found
    thing = rng.choice(("object", seen.kind, "shape"))
    forms = (
        "What {0} is the {1} in {2}?|What {0} is the {1} in {2}?|Which {0} is the {1} in {2}?|"
        "What is the {0} of the {1} in {2}?"
    )
    question = one_of(rng, forms).format(spelling(rng), thing, question)
    return question, f"The {seen.kind} in {subject} is {seen.colour}."


def shape(rng: random.Random, world: World) -> Answered | None:
    """What shape is in image 2?"""
    found = pick_single(rng, world)
    if found is None:
        return None
    seen, question, subject = found
    forms = (
        "What shape is in {0}?|What shape is the object in {0}?|Which shape is in {0}?|"
        "What shape does {0} show?|What shape is the {1} object in {0}?"
    )
    question = one_of(rng, forms).format(question, seen.colour)
    return question, f"The shape in {subject} is {a(seen.kind)}."


def where(rng: random.Random, world: World) -> Answered | None:
    """Where is the object in image 3?"""
    found = pick_single(rng, world)
    if found is None:
        return None
    seen, question, subject = found
    thing = rng.choice(("object", seen.kind, name(seen), "shape"))
    question = one_of(rng, "Where is the {0} in {1}?|Where in {1} is the {0}?").format(
        thing, question
    )
    return question, f"The {seen.kind} in {subject} is {at(seen.place)}."


def background(rng: random.Random, world: World) -> Answered | None:
    """What colour is the background of image 2?"""
    scene, question, subject = pick(rng, world)
    if not scene.shapes:
        return None
    forms = (
        "What {0} is the background of {1}?|What is the background of {1}?|"
        "What background does {1} have?"
    )
    subject = subject[0].lower() + subject[1:]
    word = a("gradient") if scene.background == "gradient" else scene.background
    question = one_of(rng, forms).format(spelling(rng), question)
    return question, f"The background of {subject} is {word}."


def colour_of(rng: random.Random, world: World) -> Answered | None:
    """What colour is the star?"""
    found = unique(rng, world, lambda item: item.kind)
    if found is None:
        return None
    seen = found[1]
    forms = "What {0} is the {1}?|What is the {0} of the {1}?"
    question = one_of(rng, forms).format(spelling(rng), seen.kind)
    return question, f"The {seen.kind} is {seen.colour}."


def shape_of(rng: random.Random, world: World) -> Answered | None:
    """What shape is the red object?"""
    found = unique(rng, world, lambda item: item.colour)
    if found is None:
        return None
    seen = found[1]
    forms = "What is the {0} object?|What shape is the {0} object?"
    return one_of(rng, forms).format(seen.colour), f"The {seen.colour} object is {a(seen.kind)}."


def place_of(rng: random.Random, world: World) -> Answered | None:
    """Where is the red star?"""
    found = unique(rng, world, name)
    if found is None:
        return None
    seen = found[1]
    return f"Where is the {name(seen)}?", f"The {name(seen)} is {at(seen.place)}."


def yes_no(rng: random.Random, world: World) -> Answered | None:
    """Is there a red star in image 2? The answer looks first, then judges."""
    scene, question, subject = pick(rng, world)
    objects = [seen for _, seen in objects_of(world)]
    if not objects:
        return None
    here = scene.shapes and rng.random() < 0.5
    thing = rng.choice(scene.shapes if here else objects)
    by: Callable[[Shape], str] = rng.choice(
        (name, lambda item: item.kind, lambda item: f"{item.colour} object")
    )
    verdict = "yes" if any(by(seen) == by(thing) for seen in scene.shapes) else "no"
    forms = "Is there {0} in {1}?|Does {1} show {0}?"
    return one_of(rng, forms).format(
        a(by(thing)), question
    ), f"{subject} {content(scene)}, so {verdict}."


def how_many_objects(rng: random.Random, world: World) -> Answered | None:
    """How many objects are in image 2?"""
    scene, question, subject = pick(rng, world)
    if not scene.shapes:
        return None
    forms = (
        "How many objects are in {0}?|How many shapes are in {0}?|How many objects does {0} show?"
    )
    number = "one object" if len(scene.shapes) == 1 else "two objects"
    return one_of(rng, forms).format(question), f"{subject} {content(scene)}, so {number}."
