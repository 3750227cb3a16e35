"""Hello world: a question about images, answered at full cache and compressed, side by side.

python -m lookm
python -m lookm --image a.png b.jpg --ask "What is in image 2?" --kv-cache h2o@0.3 look-m@64
python -m lookm --model /path/to/llava-1.5-7b-hf --image photo.jpg --ask "Describe it."
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from lookm import demo
from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.errors import LookmError
from lookm.policy import parse
from lookm.types import CacheReport, Request, Sampling

DEFAULT_QUESTION = "List the colours of all images."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers as a small table; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        images = [upright(path) for path in options.image] or demo_images()
        engine = Engine.from_config(EngineConfig(model=options.model))
        print(
            f"{len(images)} images, {engine.info.name}, {engine.info.dtype} on {engine.info.device}"
        )
        print(f"> {options.ask}\n")
        rows = [
            _row(name, *ask(engine, images, options.ask, name))
            for name in dict.fromkeys(["full", *options.kv_cache])
        ]
    except (LookmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_table([("kv_cache", "prompt tokens", "kept", "bytes", "answer"), *rows])
    return 0


def ask(
    engine: Engine, images: Sequence[Image.Image], question: str, kv_cache: str
) -> tuple[str, CacheReport]:
    """One greedy answer of at most 64 tokens, and what its prompt kept."""
    inputs = [
        engine.processor.image(image, hashlib.sha256(image.tobytes()).hexdigest())
        for image in images
    ]
    content = [{"type": "image"} for _ in inputs] + [{"type": "text", "text": question}]
    prompt_ids = engine.processor.prompt([{"role": "user", "content": content}], inputs)
    sampling = Sampling(max_tokens=min(64, engine.info.max_context_tokens - len(prompt_ids)))
    request = Request("hello", prompt_ids, tuple(inputs), parse(kv_cache), sampling)
    events = list(engine.generate([request]))
    report = events[-1].cache
    assert report is not None
    return "".join(event.text for event in events).strip(), report


def upright(path: Path) -> Image.Image:
    """A picture from disk as a viewer shows it: turned as its EXIF says, on white."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def demo_images() -> list[Image.Image]:
    """Four pictures the demo model can talk about."""
    from lookm.demo.scenes import Scene, render

    shapes = (("circle", "red"), ("star", "blue"), ("square", "green"), ("triangle", "orange"))
    return [render(Scene(kind=kind, colour=colour)) for kind, colour in shapes]


def _row(name: str, answer: str, report: CacheReport) -> tuple[str, ...]:
    return (
        name,
        f"{report.prompt_tokens} ({report.image_tokens} image)",
        f"{report.kept_tokens} ({report.kept_tokens / report.prompt_tokens:.0%})",
        f"{report.bytes:,}",
        answer,
    )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lookm",
        description="Answer one question about images at full and at compressed KV cache.",
    )
    parser.add_argument("--model", default=demo.NAME, help="bundled name, directory or hub name")
    parser.add_argument("--image", nargs="+", default=[], type=Path, help="image files")
    parser.add_argument("--ask", default=DEFAULT_QUESTION, help="the question")
    parser.add_argument(
        "--kv-cache",
        nargs="+",
        default=["look-m@0.2"],
        help="policies to show beside full; default look-m@0.2",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
