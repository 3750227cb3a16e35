"""What is asked, and what comes back: the values that suites, back ends and scores share.

Knows nothing of where questions come from or who answers them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lookm.positions import Positions

if TYPE_CHECKING:
    from PIL import Image

#: The policy that keeps everything; every run asks it, for agreement is measured against it.
FULL = "full"


@dataclass(frozen=True, slots=True)
class Marks:
    """How good an answer is, in [0, 1]: by the suite's own metric, and by a softer one."""

    score: float
    lenient: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One question. `key` names it for ever: the same key is the same question in every run.

    `messages` are chat-template dicts whose `{"type": "image"}` parts stand for `pictures()`, RGB,
    in order. `mark` judges an answer.
    """

    key: str
    task: str
    messages: Sequence[Mapping[str, Any]]
    pictures: "Callable[[], Sequence[Image.Image]]"
    truth: str
    mark: Callable[[str], Marks]
    num_images: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """A question under one policy, in the short form (`look-m@0.2`)."""

    question: Question
    policy: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a back end answered. `kept_bytes` of the prompt's `full_bytes` were held; None where the
    server does not tell. `error` says why there is no answer."""

    job: Job
    text: str
    kept_bytes: int | None = None
    full_bytes: int | None = None
    error: str | None = None


class Backend(Protocol):
    """Answers jobs, several at a time and in any order; every job gets exactly one reply."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What makes its answers what they are: the model, where and how it runs."""

    def replies(self, jobs: Iterable[Job]) -> Iterator[Reply]:
        """`jobs` are taken lazily, as there is room."""

    def kept(self, job: Job) -> Positions | None:
        """What the policy keeps of the question's prompt; None where nobody tells."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of `answers.jsonl`."""

    key: str
    policy: str
    task: str
    num_images: int
    truth: str
    text: str
    score: float
    lenient: float | None
    kept_bytes: int | None
    full_bytes: int | None
    error: str | None


def answer_of(reply: Reply) -> Answer:
    """A reply with its marks; an error is worth nothing."""
    question = reply.job.question
    marks = question.mark(reply.text) if reply.error is None else Marks(0.0, 0.0)
    return Answer(
        question.key,
        reply.job.policy,
        question.task,
        question.num_images,
        question.truth,
        reply.text,
        marks.score,
        marks.lenient,
        reply.kept_bytes,
        reply.full_bytes,
        reply.error,
    )
