"""Conversations as trees: one shared beginning (the pictures), many ways it may go on.

Knows worlds, tasks and the chat markup. Knows nothing of token ids or tensors. A tree has a root,
say ``USER:Image 1:<image>Image 2:<image>``, and branches, each one question-and-answer chain that
continues the root as if it were alone. Training reads the root's pictures once for all branches.

Text is cut into pieces only where a marker token ends, so that the tokens of the pieces are the
tokens of the whole. `markup` is `TEMPLATE` in Python; a test holds them together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lookm.demo.tasks import TASKS, Task
from lookm.demo.training.smalltalk import BETWEEN, INTROS, babble, draw_reply, draw_system
from lookm.demo.words import NOTE_KEYS, NOTE_WORDS, World

MAX_IMAGES: Final = 16
USER, ASSISTANT, SYSTEM, IMAGE, END = "USER:", "ASSISTANT:", "SYSTEM:", "<image>", "</s>"
LABELS: Final = tuple(f"Image {number}:" for number in range(1, MAX_IMAGES + 1))

TEMPLATE: Final = """\
{%- set seen = namespace(images=0, text=false) -%}
{%- for message in messages -%}
{%- if message['role'] in ('system', 'developer') -%}{{ 'SYSTEM:' }}
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT:' }}
{%- else -%}{{ 'USER:' }}
{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- elif message['content'] -%}
{%- set seen.text = false -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{ (' ' if seen.text else '') ~ (part['text'] | trim) }}{%- set seen.text = true -%}
{%- elif part['type'] in ('image', 'image_url') -%}
{%- set seen.images = seen.images + 1 -%}{%- set seen.text = false -%}
{{ 'Image ' ~ seen.images ~ ':<image>' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_MARK: Final = {"system": SYSTEM, "developer": SYSTEM, "assistant": ASSISTANT}


def markup(messages: Sequence[dict[str, Any]], add_generation_prompt: bool = False) -> str:
    """The prompt text of OpenAI-style messages: what `TEMPLATE` renders."""
    images, out = 0, []
    for message in messages:
        out.append(_MARK.get(message["role"], USER))
        content, after_text = message["content"] or [], False
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for part in content:
            if part["type"] == "text":
                out.append(" " * after_text + part["text"].strip())
                after_text = True
            else:
                images, after_text = images + 1, False
                out.append(f"Image {images}:{IMAGE}")
        if message["role"] == "assistant":
            out.append(END)
    return "".join([*out, ASSISTANT * add_generation_prompt])


@dataclass(frozen=True, slots=True)
class Piece:
    """Some markup. `task` names the task whose answer it is; None where it is only read."""

    text: str
    task: str | None = None


Pieces = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """`root` begins every conversation; each of `branches` goes on from it. Images are in order."""

    root: Pieces
    branches: tuple[Pieces, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its true answer."""

    task: str
    question: str
    answer: str


def draw_question(rng: random.Random, world: World, tasks: Sequence[Task] = TASKS) -> Question:
    """A question that makes sense for the world, by the weight of its task."""
    weights = [task.weight for task in tasks]
    while True:
        if rng.random() < 0.03:
            return Question("small talk", *draw_reply(rng, has_images=True))
        task = rng.choices(tasks, weights)[0]
        answered = task.ask(rng, world)
        if answered is not None:
            return Question(task.name, _loosen(rng, answered[0]), answered[1])


def _loosen(rng: random.Random, question: str) -> str:
    """People type carelessly: lower case, no question mark, please."""
    fate = rng.random()
    if fate < 0.06:
        return question[0].lower() + question[1:]
    if fate < 0.12:
        return question[:-1]
    if fate < 0.16:
        return question.lower()
    if fate < 0.2:
        return (
            f"Please {question[0].lower()}{question[1:]}"
            if question[-1] == "."
            else f"{question} Please answer."
        )
    if fate < 0.24:
        return question + rng.choice((" Answer in one sentence.", " Be brief.", " Answer briefly."))
    return question


def draw_world(rng: random.Random, scenes: Sequence[Any]) -> World:
    """Pictures, and in one conversation out of four one or two notes."""
    keys = rng.sample(NOTE_KEYS, rng.choice((1, 1, 2))) if rng.random() < 0.25 else []
    return World(tuple(scenes), tuple((key, rng.choice(NOTE_WORDS)) for key in keys))


def draw_tree(rng: random.Random, world: World, max_chars: int) -> Tree:
    """A tree for a world, with branches until their text reaches about `max_chars`."""
    root = _draw_root(rng, world)
    last = root[-1].text
    opening = USER if last.endswith(END) else "" if last.endswith((IMAGE, USER)) else " "
    branches, chars = [], 0
    while chars < max_chars:
        pieces = _turn(opening, _ask(rng, world))
        while rng.random() < 0.2:
            pieces += _turn(USER, _ask(rng, world))
        branches.append(pieces)
        chars += sum(len(piece.text) for piece in pieces)
    return Tree(root, tuple(branches))


def _ask(rng: random.Random, world: World) -> Question:
    if world.scenes:
        return draw_question(rng, world)
    return Question("small talk", *draw_reply(rng, has_images=False))


def _turn(opening: str, question: Question) -> Pieces:
    return Piece(opening + question.question + ASSISTANT), Piece(
        question.answer + END, question.task
    )


def _draw_root(rng: random.Random, world: World) -> Pieces:
    """The shared beginning: all pictures, and maybe a system message, notes or an earlier turn."""
    notes = [f"Note: the {key} is {word}." for key, word in world.notes]
    system = [draw_system(rng)] if rng.random() < 0.25 else []
    if rng.random() < 0.2:
        system, notes = [*system, *notes], []
    head = f"{SYSTEM}{' '.join(system)}{USER}" if system else USER
    pictures = [label + IMAGE for label in LABELS[: len(world.scenes)]]
    fate = rng.random()
    if not pictures:
        return (Piece(head),)
    if fate < 0.2:  # the question stands before the pictures
        first = draw_question(rng, world)
        return _question_first(head, notes, first, pictures)
    if fate < 0.32:  # earlier turns saw only some of the pictures
        earlier: Pieces = ()
        cut = 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            start, cut = cut, rng.randint(cut, len(pictures) - 1)
            early = _ask(rng, World(world.scenes[:cut]))
            earlier += _turn(head + "".join(pictures[start:cut]), early)
            head = USER
        return (*earlier, Piece(USER + _gallery(rng, pictures[cut:], notes, fate)))
    return (Piece(head + _gallery(rng, pictures, notes, fate)),)


def _question_first(head: str, notes: list[str], first: Question, pictures: list[str]) -> Pieces:
    text = head + " ".join([*notes, first.question]) + "".join(pictures) + ASSISTANT
    return Piece(text), Piece(first.answer + END, first.task)


def _gallery(rng: random.Random, pictures: list[str], notes: list[str], fate: float) -> str:
    """The pictures of one turn, now and then with words before, between or after them."""
    parts = list(pictures)
    if fate > 0.9:
        for at in range(len(pictures) - 1, 0, -1):
            parts.insert(at, rng.choice(BETWEEN))
    if notes:
        parts.insert(rng.choice((0, 0, len(parts), len(parts), len(parts) // 2)), " ".join(notes))
    if rng.random() < 0.2:
        parts.insert(0, rng.choice(INTROS))
    if fate > 0.97:
        parts.insert(0, babble(rng, 30))
    return _joined(parts)


def _joined(parts: Sequence[str]) -> str:
    """Parts of one turn, with a space only where text meets text."""
    text = ""
    for part in parts:
        meets = text and not text.endswith(IMAGE) and not part.endswith(IMAGE)
        text += " " * bool(meets) + part
    return text
