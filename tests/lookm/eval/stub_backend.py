"""Questions and back ends without a model, for the tests of everything around one."""

from collections.abc import Iterator
from typing import Any

from lookm.eval.questions import Marks, Question, Reply


def question(key: str = "q1", task: str = "needle", truth: str = "yes", num_images: int = 2) -> Any:
    return Question(
        key=key,
        task=task,
        messages=[{"role": "user", "content": [{"type": "text", "text": key}]}],
        pictures=list,
        truth=truth,
        mark=lambda text: Marks(float(text == truth), 0.5),
        num_images=num_images,
        max_tokens=9,
    )


class Scripted:
    """Answers `texts[key, policy]`, else `yes`; stops like a killed run after `dies_after`."""

    def __init__(self, texts: Any = (), dies_after: Any = None, settings: Any = ()) -> None:
        self.texts, self.dies_after = dict(texts), dies_after
        self.settings = {"model": "scripted", **dict(settings)}
        self.asked = []

    def kept(self, job: Any) -> Any:
        """As if it did not tell."""
        return None

    def replies(self, jobs: Any) -> Iterator[Any]:
        for job in jobs:
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((job.question.key, job.policy))
            text = self.texts.get(self.asked[-1], "yes")
            kept = 100 if job.policy == "full" else 20
            error = "too long" if text is None else None
            yield Reply(job, text or "", kept, 100, error)
