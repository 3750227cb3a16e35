"""The table of `lookm.eval.demo` on the command line."""

import argparse
import sys
from collections.abc import Sequence

from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.errors import LookmError
from lookm.eval.demo import DEFAULT_TASKS, ask, draw_exams, score, table
from lookm.models.demo.tasks import TASKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        engine = Engine.from_config(EngineConfig())
        exams = draw_exams(options.tasks, options.images, options.count, options.seed)
        at_full = ask(engine, exams, "full")
        scores = [
            score(at_full if policy == "full" else ask(engine, exams, policy), at_full)
            for policy in options.kv_cache
        ]
    except LookmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{engine.info.name}, {len(exams)} held-out questions, images {options.images}\n")
    print(table(scores))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lookm.eval")
    parser.add_argument("--kv-cache", nargs="+", default=["full", "look-m@0.5", "look-m@0.2"])
    parser.add_argument("--images", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--count", type=int, default=20, help="questions per task and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tasks", nargs="+", default=DEFAULT_TASKS, choices=[task.name for task in TASKS]
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
