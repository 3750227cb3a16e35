"""The study behind `look-m-plus`: `python -m lookm.eval.ablation`.

Every row of the table keeps the same number of tokens: a variant's nominal fraction is chosen so
that what it really keeps of a suite's prompts comes to the asked fraction (methods that protect
text overshoot where there is more text than that: the table says by how much). Knows the demo
model's questions and the engine. Develop on seeds from 100 on; seeds below 10 are held out for a
last look. Its tables: docs/look-m-plus.md.
"""

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lookm.config import EngineConfig
from lookm.demo.exams import Exam, draw_exam
from lookm.demo.scenes import draw_scene, render
from lookm.demo.tasks import TASKS, Task
from lookm.demo.training.smalltalk import draw_system
from lookm.demo.words import NOTE_KEYS, NOTE_WORDS, World
from lookm.engine import Engine
from lookm.errors import LookmError
from lookm.policy import PRESETS, Preset, depth, nominal_rows, resolve, scores
from lookm.policy.coverage import even_places, in_line
from lookm.policy.merges import MERGES
from lookm.policy.pins import Pins
from lookm.types import CachePolicy, ImageInput, Request, Sampling

SUITES = ("mixed", "many", "first", "text")
SYSTEM_SENTENCES = 8  # of a text-heavy prompt: with two images, two fifths of it are text
MAX_TOKENS = 200
_TASK = {task.name: task for task in TASKS}


def variants() -> Mapping[str, Preset]:
    """`look-m-plus` with one part taken away or exchanged, by what is different."""
    plus = PRESETS["look-m-plus"]
    merge = plus.merge
    assert merge is not None
    both = replace(plus.needs, sums=True)

    def line(**parts: object) -> Preset:
        given = {"text": scores.window_sum, "images": even_places, "text_share": 0.75, **parts}
        return replace(plus, score=in_line(**given), needs=both)  # type: ignore[arg-type]

    return {
        "look-m-plus": plus,
        "drops what it evicts": replace(plus, merge=None),
        "merges by pivot": replace(plus, merge=MERGES["pivot"]),
        "merges by average": replace(plus, merge=MERGES["average"]),
        "merges across modalities": replace(plus, merge=replace(merge, apart=False)),
        "chooses targets once": replace(plus, merge=replace(merge, again=False)),
        "lets merged keys shrink": replace(plus, merge=replace(merge, length=False)),
        "the same budget in every layer": replace(plus, depth=None),
        "pyramid over layers": replace(plus, depth=depth.pyramid),
        "images at random": line(images=lambda view: -scores.random(view)),
        "images by attention": line(images=lambda view: -scores.column_sum(view)),
        "images by the question's attention": line(images=lambda view: -scores.window_sum(view)),
        "images by unusual keys": line(images=lambda view: -scores.keydiff(view)),
        "text by all attention": line(text=scores.column_sum),
        "text at most half": line(text_share=0.5),
        "all text first": replace(plus, pins=Pins(text="prior")),
        "half of it recent": replace(plus, recent=0.5),
    }


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the engine takes it."""

    exam: Exam
    ids: tuple[int, ...]
    images: tuple[ImageInput, ...]
    is_image_T: torch.Tensor


@dataclass(frozen=True, slots=True)
class Point:
    """One row at one budget on one suite. `kept` is the share of KV bytes that was held."""

    row: str
    budget: float
    suite: str
    seed: int
    count: int
    asked: int
    right: int
    kept: float
    recent: float | None = None

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def error(self) -> float:
        """Standard error of `accuracy`."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.asked)


def draw_suite(suite: str, count: int, seed: int) -> Iterator[Exam]:
    """Questions of one kind of prompt; `count` for each task and number of images, or a multiple.

    `mixed`: seven tasks over 2, 4 and 8 images. `many`: 16 images. `first`: asked before the
    images. `text`: two images and more text than a budget of a fifth can hold.
    """
    if suite == "text":
        for name in ("note", "what", "describe", "describe all"):
            for number in range(3 * count):
                yield _text_heavy(_TASK[name], seed, number)
        return
    names, sizes, times = {
        "mixed": ("what,describe,colour,shape,where,list colours,describe all", (2, 4, 8), 1),
        "many": ("what,colour,list colours,where", (16,), 2),
        "first": ("what,describe,list colours,describe all", (2, 8), 1),
    }[suite]
    for name in names.split(","):
        for size in sizes:
            for number in range(times * count):
                exam = draw_exam(_TASK[name], size, seed, number, ask_first=suite == "first")
                if exam is not None:
                    yield exam


def _text_heavy(task: Task, seed: int, number: int) -> Exam:
    """A long system message, a note, two images and a question."""
    rng = random.Random(f"llava-demo exam text {seed} {task.name} 2 {number}")
    while True:
        scenes = tuple(draw_scene(rng) for _ in range(2))
        key, word = rng.choice(NOTE_KEYS), rng.choice(NOTE_WORDS)
        answered = task.ask(rng, World(scenes, ((key, word),)))
        if answered is None:
            continue
        sentences = [draw_system(rng) or "Answer in English." for _ in range(SYSTEM_SENTENCES)]
        parts: list[dict[str, str]] = [
            {"type": "text", "text": f"Note: the {key} is {word}."},
            *({"type": "image"} for _ in scenes),
            {"type": "text", "text": answered[0]},
        ]
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": " ".join(sentences)},
            {"role": "user", "content": parts},
        ]
        return Exam(task.name, messages, [render(scene) for scene in scenes], answered[1])


class Study:
    """An engine whose table of presets has the rows, and the suites' prompts."""

    def __init__(
        self, rows: Mapping[str, Preset], count: int, seed: int, recent: float | None = None
    ) -> None:
        self._engine = Engine.from_config(
            EngineConfig(page_tokens=4)
        )  # bytes follow tokens closely
        self._presets = MappingProxyType({**PRESETS, **rows})
        self._engine.presets = self._presets
        self._count, self._seed, self._recent = count, seed, recent
        self._image_id = self._engine.processor.image_token_id
        self.prompts = cache(self._prompts)

    def _prompts(self, suite: str) -> list[Prompt]:
        return [self._prompt(exam) for exam in draw_suite(suite, self._count, self._seed)]

    def _prompt(self, exam: Exam) -> Prompt:
        processor = self._engine.processor
        images = tuple(
            processor.image(picture, hashlib.sha256(picture.tobytes()).hexdigest())
            for picture in exam.pictures
        )
        ids = processor.prompt(exam.messages, images)
        return Prompt(exam, ids, images, torch.tensor(ids) == self._image_id)

    def matched(self, row: str, prompts: Sequence[Prompt], budget: float) -> CachePolicy:
        """The policy of `row` that keeps `budget` of these prompts on average, or least above it.

        By bisection: what is kept grows with the nominal fraction.
        """
        low, high = 0.0005, 1.0
        for _ in range(16):
            middle = (low + high) / 2
            recipe = resolve(self._policy(row, middle), self._presets)
            kept = sum(nominal_rows(recipe, p.is_image_T) / len(p.ids) for p in prompts)
            low, high = (low, middle) if kept > budget * len(prompts) else (middle, high)
        return self._policy(row, low)

    def _policy(self, row: str, keep: float) -> CachePolicy:
        return CachePolicy(row, keep=keep, recent=self._recent)

    def ask(self, row: str, budget: float, suite: str) -> Point:
        """Every question of a suite, greedily, batched by the engine; exact match."""
        prompts = self.prompts(suite)
        full = self._presets[row].score is None
        policy = CachePolicy(row) if full else self.matched(row, prompts, budget)
        texts, kept = [""] * len(prompts), [1.0] * len(prompts)
        requests = (
            Request(str(i), prompt.ids, prompt.images, policy, Sampling(max_tokens=MAX_TOKENS))
            for i, prompt in enumerate(prompts)
        )
        for event in self._engine.generate(requests):
            number = int(event.request_id)
            texts[number] += event.text
            if event.cache is not None:
                kept[number] = event.cache.bytes / event.cache.full_bytes
        pairs = zip(texts, prompts, strict=True)
        right = sum(text.strip() == prompt.exam.answer for text, prompt in pairs)
        share = sum(kept) / len(kept)
        place = (row, budget, suite, self._seed, self._count)
        return Point(*place, len(prompts), right, share, self._recent)


def table(points: Iterable[Point], budget: float) -> str:
    """One budget as Markdown: a line per row, a column per suite, the mean, and what was kept."""
    chosen = [point for point in points if point.budget == budget]
    lines = [
        f"| {budget:.0%} kept | {' | '.join(SUITES)} | mean |",
        "|---" * (len(SUITES) + 2) + "|",
    ]
    for row in dict.fromkeys(point.row for point in chosen):
        cells = {point.suite: point for point in chosen if point.row == row}
        shown = [_cell(cells[suite], budget) if suite in cells else "-" for suite in SUITES]
        mean = sum(point.accuracy for point in cells.values()) / len(cells)
        error = math.sqrt(sum(point.error**2 for point in cells.values())) / len(cells)
        lines.append(f"| {row} | {' | '.join(shown)} | {mean:.0%} ± {error:.0%} |")
    return "\n".join(lines)


def _cell(point: Point, budget: float) -> str:
    over = f" (kept {point.kept:.0%})" if point.kept > budget + 0.02 and point.row != "full" else ""
    return f"{point.accuracy:.0%} ± {point.error:.0%}{over}"


def load(path: Path | None) -> list[Point]:
    """Points of an earlier run."""
    if path is None or not path.exists():
        return []
    return [Point(**json.loads(line)) for line in path.read_text().splitlines()]


def run(study: Study, options: argparse.Namespace, rows: Sequence[str]) -> list[Point]:
    """Ask what is not in the file yet, adding to it; return every point of this run."""
    known = {(p.row, p.budget, p.suite, p.seed, p.count, p.recent): p for p in load(options.out)}
    points = []
    for budget in options.kept:
        for row in rows:
            for suite in options.suites:
                key = (row, budget, suite, options.seed, options.count, options.recent)
                if key not in known:
                    known[key] = study.ask(row, budget, suite)
                    if options.out is not None:
                        with options.out.open("a") as file:
                            file.write(json.dumps(asdict(known[key])) + "\n")
                points.append(known[key])
        print(table(points, budget) + "\n", flush=True)
    return points


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit status."""
    options = _parser().parse_args(arguments)
    rows = dict(PRESETS if options.rows == "presets" else variants())
    names = [name for name in rows if not options.only or name in options.only]
    try:
        run(Study(rows, options.count, options.seed, options.recent), options, names)
    except LookmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lookm.eval.ablation")
    parser.add_argument("--rows", choices=("variants", "presets"), default="variants")
    parser.add_argument("--only", nargs="+", help="these rows alone")
    parser.add_argument("--kept", nargs="+", type=float, default=[0.1, 0.2], help="fractions kept")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--count", type=int, default=5, help="questions per task and size")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--recent", type=float, help="share that is recent, of every row")
    parser.add_argument("--out", type=Path, help="JSON lines; a run goes on where it stopped")
    return parser


if __name__ == "__main__":
    sys.exit(main())
