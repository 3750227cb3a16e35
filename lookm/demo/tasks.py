"""The table of tasks: what can be asked about a world, and how often training asks it.

Knows the questions of `ask_one` and `ask_many`, and nothing of chats, tokens or training. The rules
they keep: a question returns None where it would make no sense for the world; an answer is true of
the world; it is a sentence whose news comes after the first word, because the first token of an
answer is computed from the whole prompt whatever the cache keeps. A new task is a function and a
row here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lookm.demo import ask_many, ask_one
from lookm.demo.words import World

Ask = Callable[[random.Random, World], tuple[str, str] | None]


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question. `weight` is its share of training, relative to the others."""

    name: str
    ask: Ask
    weight: float


TASKS: Final = (
    Task("what", ask_one.what, 3.0),
    Task("describe", ask_one.describe, 3.0),
    Task("colour", ask_one.colour, 2.0),
    Task("shape", ask_one.shape, 2.0),
    Task("where", ask_one.where, 2.0),
    Task("background", ask_one.background, 1.0),
    Task("colour of", ask_one.colour_of, 1.5),
    Task("shape of", ask_one.shape_of, 1.5),
    Task("place of", ask_one.place_of, 0.7),
    Task("list colours", ask_many.list_colours, 2.0),
    Task("list shapes", ask_many.list_shapes, 2.0),
    Task("describe all", ask_many.describe_all, 2.0),
    Task("describe only", ask_many.describe_only, 1.0),
    Task("two", ask_many.two, 0.7),
    Task("which", ask_many.which, 1.5),
    Task("same", ask_many.same, 0.7),
    Task("yes or no", ask_one.yes_no, 0.7),
    Task("count", ask_many.count, 0.7),
    Task("objects", ask_one.how_many_objects, 0.3),
    Task("how many", ask_many.how_many, 0.4),
    Task("missing", ask_many.missing, 0.3),
    Task("note", ask_many.note, 1.5),
    Task("repeat", ask_many.repeat, 1.5),
)
BY_NAME: Final = {task.name: task for task in TASKS}
