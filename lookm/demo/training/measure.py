"""How often the demo model is right: `python -m lookm.demo.training.measure`.

Knows held-out scenes, the real processor and greedy `generate`. Scores exact match of the whole
answer, per task and number of images. Knows nothing of training and nothing of cache policies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lookm.demo import checkpoint_path
from lookm.demo.exams import Exam, draw_exam
from lookm.demo.tasks import TASKS, Task

SIZES: Final = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Cell:
    """Accuracy of one task at one number of images."""

    task: str
    num_images: int
    right: int
    asked: int


class Examiner:
    """The shipped model behind the calls any user of `transformers` would make."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: str = "auto") -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self.model.to(device).eval()

    @torch.inference_mode()
    def answers(self, exams: Sequence[Exam]) -> list[str]:
        """Greedy answers to a batch."""
        texts = [
            self.processor.apply_chat_template(exam.messages, add_generation_prompt=True)
            for exam in exams
        ]
        pictures = [picture for exam in exams for picture in exam.pictures]
        inputs = self.processor(
            text=texts, images=pictures or None, return_tensors="pt", padding=True
        ).to(self.model.device)
        if pictures:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=256, do_sample=False)
        fresh = ids[:, inputs["input_ids"].shape[1] :]
        return [
            text.strip() for text in self.processor.batch_decode(fresh, skip_special_tokens=True)
        ]


def measure(
    examiner: Examiner,
    task: Task,
    num_images: int,
    count: int,
    seed: int = 0,
    batch: int = 16,
    ask_first: bool = False,
) -> Cell:
    """Exact match of one task at one number of images, over `count` held-out questions."""
    drawn = (draw_exam(task, num_images, seed, number, ask_first) for number in range(count))
    exams = [exam for exam in drawn if exam is not None]
    right = 0
    for at in range(0, len(exams), batch):
        part = exams[at : at + batch]
        answers = examiner.answers(part)
        right += sum(one == exam.answer for one, exam in zip(answers, part, strict=True))
    return Cell(task.name, num_images, right, len(exams))


def table(cells: Sequence[Cell]) -> str:
    """A Markdown table: one row per task, one column per number of images."""
    sizes = sorted({cell.num_images for cell in cells})
    lines = ["| task | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
    by_key = {(cell.task, cell.num_images): cell for cell in cells}
    for name in dict.fromkeys(cell.task for cell in cells):
        row = [by_key.get((name, size)) for size in sizes]
        shares = [f"{cell.right / cell.asked:.2f}" if cell and cell.asked else "-" for cell in row]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m lookm.demo.training.measure")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    parser.add_argument("--count", type=int, default=40, help="questions per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--tasks", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--ask-first", action="store_true", help="question before the images")
    parser.add_argument("--json", type=Path, help="also write the cells here")
    options = parser.parse_args()
    examiner = Examiner(options.checkpoint, options.device)
    cells = []
    for task in TASKS:
        for size in options.sizes if task.name in options.tasks else ():
            cells.append(
                measure(
                    examiner, task, size, options.count, options.seed, ask_first=options.ask_first
                )
            )
            print(json.dumps(asdict(cells[-1])), flush=True)
    print(table(cells))
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))


if __name__ == "__main__":
    main()
