"""Questions about several pictures at once, and about notes: a small function each.

Knows scenes and words. See `tasks` for the rules that every question keeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from lookm.demo.ask_one import Answered, objects_of, one_of, spelling, unique
from lookm.demo.scenes import Shape
from lookm.demo.words import (
    NOTE_KEYS,
    NOTE_WORDS,
    World,
    a,
    content,
    join,
    name,
)


def which(rng: random.Random, world: World) -> Answered | None:
    """Which image shows a red star?"""
    by: Callable[[Shape], str] = rng.choice(
        (name, lambda item: item.kind, lambda item: f"{item.colour} object")
    )
    found = unique(rng, world, by)
    if found is None or len(world.scenes) < 2:
        return None
    index, thing = found[0], by(found[1])
    forms = (
        "Which image shows {1}?|Which image contains {1}?|In which image is the {0}?|"
        "Which image has the {0}?|Find the {0}."
    )
    return one_of(rng, forms).format(thing, a(thing)), f"The {thing} is in image {index + 1}."


def _numbered(words: list[str]) -> str:
    """Image 1 is red, image 2 is blue and image 3 is red. (Bare lists lose count.)"""
    answer = join([f"image {i + 1} is {word}" for i, word in enumerate(words)])
    return f"I{answer[1:]}."


def list_colours(rng: random.Random, world: World) -> Answered | None:
    """List the colours of all images."""
    if any(len(scene.shapes) > 1 for scene in world.scenes) or len(world.scenes) < 2:
        return None
    word = spelling(rng) + "s"
    forms = (
        "List the {0} of all images.|List all {0}.|List the {0} in order.|What are the {0}?|"
        "What {0} are in the images?|Name the {0}.|What {0} are the objects?|List the {0}."
    )
    answer = _numbered([scene.colour for scene in world.scenes])
    return one_of(rng, forms).format(word), answer


def list_shapes(rng: random.Random, world: World) -> Answered | None:
    """List the shapes of all images."""
    if not world.singles or len(world.scenes) < 2:
        return None
    forms = (
        "List the shapes of all images.|List all shapes.|List the shapes in order.|"
        "What are the shapes?|What shapes are in the images?|Name the shapes.|"
        "What shapes do you see?|List the shapes."
    )
    answer = _numbered([a(scene.shapes[0].kind) for scene in world.scenes])
    return one_of(rng, forms), answer


def describe_all(rng: random.Random, world: World) -> Answered | None:
    """Describe all images."""
    if len(world.scenes) < 2:
        return None
    forms = (
        "Describe all images.|Describe the images.|What is in the images?|Describe all images.|"
        "What do the images show?|What is in each image?|Describe each image.|What do you see?|"
        "What do you see in the images?|List the objects in all images.|What is in these images?|"
        "Describe these images.|List all objects.|What are these?"
    )
    if len(world.scenes) == 2:
        forms += "|Describe both images.|What is in both images?|Compare the images."
    sentences = [f"Image {i + 1} {content(scene)}." for i, scene in enumerate(world.scenes)]
    return one_of(rng, forms), " ".join(sentences)


def describe_only(rng: random.Random, world: World) -> Answered | None:
    """The same questions where there is a single picture."""
    if len(world.scenes) != 1:
        return None
    forms = (
        "What is this?|What do you see?|Describe what you see.|What is shown here?|"
        "What is in the images?|Describe the images.|Describe all images."
    )
    return one_of(rng, forms), f"The image {content(world.scenes[0])}."


def two(rng: random.Random, world: World) -> Answered | None:
    """What is in image 1 and image 3?"""
    if len(world.scenes) < 2:
        return None
    one, other = sorted(rng.sample(range(len(world.scenes)), 2))
    forms = (
        "What is in image {0} and image {1}?|Describe images {0} and {1}.|"
        "What is in images {0} and {1}?|Compare image {0} and image {1}.|"
        "What do images {0} and {1} show?|What is the difference between image {0} and image {1}?"
    )
    first, second = (f"mage {i + 1} {content(world.scenes[i])}" for i in (one, other))
    return one_of(rng, forms).format(one + 1, other + 1), f"I{first} and i{second}."


def same(rng: random.Random, world: World) -> Answered | None:
    """Do image 1 and image 3 have the same colour? The answer looks first, then judges."""
    singles = {i: s.shapes[0] for i, s in enumerate(world.scenes) if len(s.shapes) == 1}
    pairs = [(i, j) for i in singles for j in singles if i != j]
    if not pairs:
        return None
    by_colour = rng.random() < 0.5
    words = {i: seen.colour if by_colour else a(seen.kind) for i, seen in singles.items()}
    equal_pairs = [(i, j) for i, j in pairs if words[i] == words[j]]
    one, other = rng.choice(equal_pairs if equal_pairs and rng.random() < 0.4 else pairs)
    verdict = "yes" if words[one] == words[other] else "no"
    first = f"Image {one + 1} is {words[one]}"
    second = f"image {other + 1} is {words[other]}"
    forms = (
        "Do image {0} and image {1} have the same {2}?|Do images {0} and {1} show the same {2}?|"
        "Are image {0} and image {1} the same {2}?"
    )
    word = spelling(rng) if by_colour else "shape"
    question = one_of(rng, forms).format(one + 1, other + 1, word)
    return question, f"{first} and {second}, so {verdict}."


def count(rng: random.Random, world: World) -> Answered | None:
    """How many stars are there?"""
    objects = [seen for _, seen in objects_of(world)]
    if not objects:
        return None
    thing = rng.choice(objects)
    if rng.random() < 0.5:
        number = sum(seen.kind == thing.kind for seen in objects)
        plural = {"cross": "crosses"}.get(thing.kind, f"{thing.kind}s")
        return f"How many {plural} are there?", f"The number of {plural} is {number}."
    number = sum(seen.colour == thing.colour for seen in objects)
    question = f"How many {thing.colour} objects are there?"
    return question, f"The number of {thing.colour} objects is {number}."


def how_many(rng: random.Random, world: World) -> Answered | None:
    """How many images are there?"""
    number = len(world.scenes)
    forms = (
        "How many images are there?|How many images do you see?|How many pictures are there?|"
        "How many images did I send?|Count the images."
    )
    answer = "There is 1 image." if number == 1 else f"There are {number} images."
    return one_of(rng, forms), answer


def missing(rng: random.Random, world: World) -> Answered | None:
    """What is in image 5? (There are three.)"""
    if len(world.scenes) >= 16:
        return None
    number = rng.randint(len(world.scenes) + 1, 16)
    forms = "What is in image {0}?|Describe image {0}.|What does image {0} show?"
    return one_of(rng, forms).format(number), f"There is no image {number}."


def note(rng: random.Random, world: World) -> Answered | None:
    """What is the code word?"""
    forms = "What is the {0}?|What was the {0}?|Tell me the {0}."
    if not world.notes:
        key = rng.choice(NOTE_KEYS)
        answer = f"You did not tell me the {key}."
        return (one_of(rng, forms).format(key), answer) if rng.random() < 0.05 else None
    key, word = rng.choice(world.notes)
    return one_of(rng, forms).format(key), f"The {key} is {word}."


def repeat(rng: random.Random, _world: World) -> Answered | None:
    """Repeat: apple river tiger. (Copying is what finding a note is learnt from.)"""
    words = " ".join(rng.sample(NOTE_WORDS, rng.randint(1, 4)))
    return one_of(rng, "Repeat: {0}.|Say: {0}.|Repeat after me: {0}.").format(words), f"{words}."
