"""The demo suite: held-out questions for the demo model in seven families, after MileBench's.

A family is a row of question kinds of `lookm.demo.tasks`; scenes and notes come from the
held-out draws of `lookm.demo.exams`, a function of the seed. Knows nothing of engines or
policies. A family that the model answers badly at full cache (`retrieval`: finding by content was
not learnt) stays in: its score and its agreement with full are both shown.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from PIL import Image

from lookm.demo.exams import Exam, draw_exam
from lookm.demo.tasks import BY_NAME
from lookm.errors import RequestError
from lookm.eval.questions import Marks, Question

#: Family -> kinds of question, asked in turn: needle in a haystack, attributes, listing, change
#: between two images, retrieval by content, text needle, counting.
FAMILIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "needle": ("colour of", "shape of", "place of"),
        "attribute": ("what", "colour", "shape", "where", "background"),
        "listing": ("list colours", "list shapes", "describe all"),
        "change": ("two", "same"),
        "retrieval": ("which",),
        "note": ("note",),
        "counting": ("count", "objects", "how many"),
    }
)
DEFAULT_IMAGES: Final = (2, 4, 8)
DEFAULT_COUNT: Final = 20
MAX_TOKENS: Final = 200

# Words that every answer of a form has, whatever the pictures show.
_FORM_TEXT: Final = (
    "a an and are at background image images in is number object objects of on plain shows so the "
    "there"
)
_FORM: Final = frozenset(_FORM_TEXT.split())


def questions(
    families: Sequence[str], sizes: Sequence[int], count: int, seed: int
) -> Iterator[Question]:
    """`count` questions for each family and number of images; fewer where none makes sense."""
    for family in families:
        if family not in FAMILIES:
            raise RequestError(f"no family {family!r} in the demo suite: {', '.join(FAMILIES)}")
        for size in sizes:
            for number in range(count):
                kind = FAMILIES[family][number % len(FAMILIES[family])]
                draw = functools.partial(draw_exam, BY_NAME[kind], size, seed, number)
                exam = draw()
                if exam is not None:
                    key = f"demo/{seed}/{kind}/{size}/{number}"
                    yield _question(key, family, exam, draw)


def lenient(answer: str, truth: str) -> float:
    """How much of the news is right: F1 of the words that carry it, in order.

    Words of form ("the image shows a") are left out. With W the longest common subsequence of the
    others: 2 |W| / (|answer| + |truth|), so 1 means every fact and nothing else.
    """
    said, true = _news(answer), _news(truth)
    if not said and not true:
        return 1.0
    return 2 * _common(said, true) / (len(said) + len(true))


def _question(key: str, family: str, exam: Exam, draw: Callable[[], Exam | None]) -> Question:
    """Holds no pictures: they are drawn again when they are asked for."""
    truth = exam.answer
    return Question(
        key=key,
        task=family,
        messages=exam.messages,
        pictures=lambda: _pictures(draw),
        truth=truth,
        mark=lambda text: Marks(float(text.strip() == truth), lenient(text, truth)),
        num_images=len(exam.pictures),
        max_tokens=MAX_TOKENS,
    )


def _pictures(draw: Callable[[], Exam | None]) -> list[Image.Image]:
    exam = draw()
    assert exam is not None
    return exam.pictures


def _news(text: str) -> list[str]:
    words = (word.strip(".,!?") for word in text.lower().split())
    return [word for word in words if word and word not in _FORM]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        last = list(row)
        for at, match in enumerate(other, start=1):
            row[at] = last[at - 1] + 1 if word == match else max(last[at], row[at - 1])
    return row[-1]
