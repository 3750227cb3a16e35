"""MileBench from its files on disk (Song et al., COLM 2024, arXiv 2404.18532).

    DATA/<name>/<name>.json                    meta_data and data, as published
    DATA/<name>/images/...                     what images_path names
    DATA/<name>/<name>_combined_<n>.json, DATA/<name>/combined_<n>_images/...   with `combined`

Knows the format, the prompt and the truncation of the original's `utils.py`, rewritten. Knows
nothing of scoring rules (`milebench_score`), engines or policies.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from tokenizers import Tokenizer

from lookm.errors import ConfigError
from lookm.eval.milebench_score import DATASETS, scorer
from lookm.eval.questions import Marks, Question

MAX_TOKENS: Final = 512
HERE: Final = "<ImageHere>"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Prompts are cut to `max_tokens`, an image counting `image_tokens`. The tokenizer is the
    model's; the chat's own markup is not counted, as in the original."""

    tokenizer: Tokenizer
    max_tokens: int
    image_tokens: int

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text, nothing added."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Back again."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def questions(
    data: Path,
    names: Sequence[str] | None,
    truncation: Truncation | None,
    combined: int | None = None,
    count: int | None = None,
) -> Iterator[Question]:
    """The samples of the named data sets (None: of those that are there), in the file's order; the
    first `count` of each. Raises `ConfigError` where a file is missing or not in the format."""
    present = [name for name in DATASETS if (data / name).is_dir()]
    if not (names or present):
        raise ConfigError(f"no MileBench data set in {data}: expected {data}/<name>/<name>.json")
    for name in names or present:
        variant = f"_combined_{combined}" if combined and combined > 1 else ""
        path = data / name / f"{name}{variant}.json"
        raw = _read(path)
        try:
            content = json.loads(raw)
            meta, samples = content["meta_data"], content["data"][:count]
            for sample in samples:
                key = f"milebench/{name}/{hashlib.sha256(raw).hexdigest()[:8]}"
                yield _question(
                    f"{key}/{sample['sample_id']}", path, meta, sample, truncation, combined
                )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not in MileBench's format: {error!r}") from error


def prompt(
    name: str,
    instruction: str,
    task: Json,
    images: Sequence[Path],
    truncation: Truncation | None,
    combined: bool = False,
) -> tuple[str, list[Path]]:
    """The prompt with `HERE` for each image, and the images that are left, in order.

    instruction, newline, context, and for multi-choice a lettered list (no letters for GPR1200,
    whose options outnumber them) and "Your answer is: ". A combined image stands before all.
    """
    context = _context(name, task, combined)
    if combined:
        context, _ = cut(context, [], instruction, truncation)
        return f"{HERE}\n{instruction}\n{context}", list(images)
    context, left = cut(context, images, instruction, truncation)
    return f"{instruction}\n{context}", left


def cut(
    context: str, images: Sequence[Path], instruction: str, truncation: Truncation | None
) -> tuple[str, list[Path]]:
    """Keep the end of the context, whole pieces of text and whole images, within the limit.

    From the back: a piece of text, then the image before it, until one does not fit; the last piece
    alone may be cut, to its end. Images are paired from the back too: the last picture belongs to
    the last placeholder, and where one side has more, what is in front goes (an image more than
    placeholders stands first). Without `truncation` everything fits.
    """
    room = None
    if truncation is not None:
        room = max(0, truncation.max_tokens - len(truncation.ids(instruction)))
    left, used = list(images), 0
    kept_text: list[str] = []
    kept_images: list[Path] = []
    starts_with_image = False
    for piece in reversed(context.split(HERE)):
        if truncation is not None and room is not None:
            ids = truncation.ids(piece)
            if used + len(ids) > room:
                if not kept_text:
                    kept_text.append(truncation.text(ids[len(ids) - room :]))
                break
            piece = truncation.text(ids)
            used += len(ids)
        kept_text.insert(0, piece)
        starts_with_image = False
        if truncation is not None and room is not None and used + truncation.image_tokens > room:
            break
        if left:
            kept_images.insert(0, left.pop())
            used += truncation.image_tokens if truncation else 0
            starts_with_image = True
    text = _joined(kept_text, len(kept_images) - starts_with_image)
    return (HERE if starts_with_image else "") + text, kept_images


def _joined(pieces: Sequence[str], num_images: int) -> str:
    """The pieces with an image between the last `num_images` pairs, nothing between others."""
    gaps = len(pieces) - 1
    text = pieces[0]
    for at, piece in enumerate(pieces[1:]):
        text += (HERE if gaps - at <= num_images else "") + piece
    return text


def _context(name: str, task: Json, combined: bool) -> str:
    context = str(task["context"])
    if "choice_list" in task:
        items = [
            str(item) if name == "GPR1200" else f"{chr(65 + number)}. {item}"
            for number, item in enumerate(task["choice_list"])
        ]
        context += "\nChoice list: \n" + "\n".join(items) + "\nYour answer is: "
    for number in range(1, len(task["images_path"]) + 1):
        sign = f"<Image {number}> " if combined else HERE
        context = context.replace(f"{{image#{number}}}", sign)
        context = context.replace(f"{{table#{number}}}", sign)
    return context


def _question(
    key: str,
    path: Path,
    meta: Json,
    sample: Json,
    truncation: Truncation | None,
    combined: int | None,
) -> Question:
    name, task = path.parent.name, sample["task_instance"]
    folder = f"combined_{combined}_images" if combined else "images"
    named = task[folder] if combined else task["images_path"]
    images = [path.parent / folder / one for one in named]
    for image in images:
        if not image.is_file():
            raise ConfigError(
                f"{image} is missing: sample {sample['sample_id']} of {path} needs it"
            )
    instructions = meta["task_instruction"]
    which = sample["task_instruction_id"]
    instruction = instructions[str(which) if isinstance(instructions, dict) else which]
    text, left = prompt(name, instruction, task, images, truncation, bool(combined))
    truth = str(sample["response"])
    rule = scorer(name, meta["question_type"], truth, task.get("choice_list"))
    return Question(
        key=key,
        task=name,
        messages=[{"role": "user", "content": parts_of(text)}],
        pictures=lambda: [_open(image) for image in left],
        truth=truth,
        mark=lambda answer: Marks(rule(answer)),
        num_images=len(left),
        max_tokens=MAX_TOKENS,
    )


def parts_of(text: str) -> list[dict[str, str]]:
    """A prompt as content parts. Two images in a row get a line each, as the original has it."""
    text = text.replace(HERE + HERE, f"{HERE}\n{HERE}\n")
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(HERE)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
