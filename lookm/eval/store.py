"""Answers on disk: one JSON line each, so that a run that was killed goes on where it stopped.

    OUT/run.json        the settings that make answers what they are
    OUT/answers.jsonl   an `Answer` a line, in the order they came

An answer's name is (question key, policy). Policies, tasks and counts may grow from one run to the
next; other settings may not change in one folder. Knows nothing of engines or scores.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from lookm.errors import ConfigError
from lookm.eval.questions import Answer

_ROOT = Path(__file__).parents[1]


class Store:
    """The answers of one folder. Raises `ConfigError` where the folder holds another run."""

    def __init__(self, folder: Path, settings: Mapping[str, str], restart: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "answers.jsonl"
        self.settings = dict(settings)
        self.answers: dict[tuple[str, str], Answer] = {}
        run = folder / "run.json"
        if restart:
            self._path.unlink(missing_ok=True)
        elif run.exists():
            _compare(json.loads(run.read_text()), settings, folder)
        elif self._path.exists():
            raise ConfigError(
                f"{folder} has answers but no run.json: use another --out or --restart"
            )
        run.write_text(json.dumps(dict(settings), indent=1) + "\n")
        for answer in self._load():
            self.answers[answer.key, answer.policy] = answer

    def has(self, key: str, policy: str) -> bool:
        """Whether that question is answered; one that failed is asked again."""
        answer = self.answers.get((key, policy))
        return answer is not None and answer.error is None

    def append(self, answer: Answer) -> None:
        """Write one answer; it is on its way to disk when this returns."""
        self.answers[answer.key, answer.policy] = answer
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")

    def _load(self) -> Iterator[Answer]:
        """Every whole line; what a killed run left of its last line is cut off."""
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode().split("\n")[:-1], start=1):
            try:
                yield Answer(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{self._path}, line {number}, is not an answer ({error}): remove the line, "
                    "or start anew with --restart"
                ) from None


@functools.cache
def code_digest() -> str:
    """A digest of this package's code: answers from changed code are not mixed with older ones.

    Taken once in a process, which runs the code that it found at its start.
    """
    digest = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*")):
        if path.suffix in (".py", ".cpp", ".hpp", ".safetensors"):
            digest.update(str(path.relative_to(_ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _compare(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    changed = [
        f"{name} was {before.get(name, 'not set')}, is {now.get(name, 'not set')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): use another --out, "
            "or start anew there with --restart"
        )
