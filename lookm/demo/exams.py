"""Held-out questions about drawn scenes: messages as a client would send them, and true answers.

A function of task, number of images, seed and number. Knows scenes and tasks; no model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from lookm.demo.scenes import draw_scene, render
from lookm.demo.tasks import Task
from lookm.demo.words import NOTE_KEYS, NOTE_WORDS, World

_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Exam:
    """One held-out question: messages as a client would send them, pictures, the true answer."""

    task: str
    messages: list[dict[str, Any]]
    pictures: list[Image.Image]
    answer: str


def draw_exam(
    task: Task, num_images: int, seed: int, number: int, ask_first: bool = False
) -> Exam | None:
    """The `number`-th held-out question of a task; None where so few images make no sense."""
    rng = random.Random(f"llava-demo exam test {seed} {task.name} {num_images} {number}")
    for _ in range(_TRIES):
        scenes = tuple(draw_scene(rng) for _ in range(num_images))
        notes = ((rng.choice(NOTE_KEYS), rng.choice(NOTE_WORDS)),) if task.name == "note" else ()
        answered = task.ask(rng, World(scenes, notes))
        if answered is None:
            continue
        question, answer = answered
        images: list[dict[str, str]] = [{"type": "image"} for _ in scenes]
        said = [{"type": "text", "text": f"Note: the {key} is {word}."} for key, word in notes]
        text = {"type": "text", "text": question}
        parts = [*said, text, *images] if ask_first else [*said, *images, text]
        pictures = [render(scene) for scene in scenes]
        return Exam(task.name, [{"role": "user", "content": parts}], pictures, answer)
    return None
