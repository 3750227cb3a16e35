"""The loop: every question under every policy that is not answered yet, each answer kept at once.

Questions are asked one after the other under all policies, so that their pictures are read once and
policies share a batch. Knows nothing of where questions come from, engines or HTTP.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lookm.eval.questions import FULL, Backend, Job, Question, answer_of
from lookm.eval.store import Store, code_digest


def open_store(
    folder: Path, backend: Backend, suite: dict[str, str], restart: bool = False
) -> Store:
    """The folder's answers. `suite` are the settings that name the questions; they, the back end
    and the code must be those of the answers that are there. Raises `ConfigError`."""
    return Store(folder, {**backend.settings, **suite, "code": code_digest()}, restart)


def with_full(policies: Sequence[str]) -> list[str]:
    """The policies to ask, each once, `full` among them: agreement is measured against it."""
    return list(dict.fromkeys([FULL, *policies]))


def ask_all(
    backend: Backend, questions: Sequence[Question], policies: Sequence[str], store: Store
) -> None:
    """Ask what `store` lacks, with a progress bar where standard error is a terminal."""
    missing = [
        Job(question, policy)
        for question in questions
        for policy in policies
        if not store.has(question.key, policy)
    ]
    asked = len(questions) * len(policies)
    with _bar() as bar:
        task = bar.add_task("answers", total=asked, completed=asked - len(missing))
        for reply in backend.replies(missing):
            store.append(answer_of(reply))
            bar.advance(task)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)
