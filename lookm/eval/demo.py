"""The demo model's held-out questions, asked through the engine under any set of policies.

Scores exact match of the whole answer, agreement with the answer at full cache, and the bytes that
were really kept (methods overshoot their budget: text protection must show). Knows nothing about
how questions are drawn (`lookm.models.demo.measure`) or answered (`lookm.engine`).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lookm.engine import Engine
from lookm.models.demo.measure import Exam, draw_exam
from lookm.models.demo.tasks import TASKS
from lookm.policy import parse
from lookm.types import Request, Sampling

#: Tasks whose answers are sentences about what the images show.
DEFAULT_TASKS = ("what", "describe", "colour", "shape", "where", "list colours", "describe all")
MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """One question under one policy. `bytes_ratio` is KV bytes held over bytes at full cache."""

    policy: str
    task: str
    num_images: int
    text: str
    right: bool
    bytes_ratio: float


@dataclass(frozen=True, slots=True)
class Score:
    """A policy's answers together: shares in [0, 1], and the standard error of `right`."""

    policy: str
    asked: int
    right: float
    right_error: float
    agrees: float
    bytes_ratio: float


def draw_exams(tasks: Sequence[str], sizes: Sequence[int], count: int, seed: int = 0) -> list[Exam]:
    """`count` held-out questions for each task and number of images."""
    chosen = [task for task in TASKS if task.name in tasks]
    drawn = (
        draw_exam(task, size, seed, number)
        for task in chosen
        for size in sizes
        for number in range(count)
    )
    return [exam for exam in drawn if exam is not None]


def ask(engine: Engine, exams: Sequence[Exam], policy: str) -> list[Answer]:
    """Every question under one policy, greedy, batched by the engine."""
    texts = [""] * len(exams)
    ratios = [1.0] * len(exams)
    requests = (_request(engine, exam, policy, str(i)) for i, exam in enumerate(exams))
    for event in engine.generate(requests):
        number = int(event.request_id)
        texts[number] += event.text
        if event.cache is not None:
            ratios[number] = event.cache.bytes / event.cache.full_bytes
    return [
        Answer(policy, exam.task, len(exam.pictures), text, text.strip() == exam.answer, ratio)
        for exam, text, ratio in zip(exams, texts, ratios, strict=True)
    ]


def score(answers: Sequence[Answer], at_full: Sequence[Answer]) -> Score:
    """Sum up one policy's answers beside those at full cache, question by question."""
    asked = len(answers)
    right = sum(answer.right for answer in answers) / asked
    pairs = zip(answers, at_full, strict=True)
    return Score(
        policy=answers[0].policy,
        asked=asked,
        right=right,
        right_error=math.sqrt(right * (1 - right) / asked),
        agrees=sum(one.text == other.text for one, other in pairs) / asked,
        bytes_ratio=sum(answer.bytes_ratio for answer in answers) / asked,
    )


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| `kv_cache` | KV bytes kept | exact answers | same as full |", "|---|---|---|---|"]
    lines += [
        f"| `{one.policy}` | {one.bytes_ratio:.0%} | {one.right:.0%} ± {one.right_error:.0%} "
        f"| {one.agrees:.0%} |"
        for one in scores
    ]
    return "\n".join(lines)


def _request(engine: Engine, exam: Exam, policy: str, name: str) -> Request:
    images = tuple(
        engine.processor.image(picture, hashlib.sha256(picture.tobytes()).hexdigest())
        for picture in exam.pictures
    )
    ids = engine.processor.prompt(exam.messages, images)
    room = engine.info.max_context_tokens - len(ids)
    return Request(name, ids, images, parse(policy), Sampling(max_tokens=min(MAX_TOKENS, room)))
