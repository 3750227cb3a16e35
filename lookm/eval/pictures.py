"""A few questions of a run with their images, as each policy kept them, beside the answers.

The questions are asked again for what is kept of their prompts; the answers are the run's. Knows
`lookm.picture` and pages; nothing of engines.
"""

from collections.abc import Iterator, Mapping, Sequence

from PIL import Image

from lookm.eval.page import Card, Section
from lookm.eval.png_url import png_url
from lookm.eval.questions import FULL, Answer, Backend, Job, Question
from lookm.picture import panels, shares_of

MAX_QUESTIONS, MAX_IMAGES, SIDE = 3, 4, 200

_TEXT = (
    "Some of the questions, and what each policy kept of their images: patches that all layers and "
    "KV heads keep are clear; the fewer keep one, the thicker its grey veil, striped where it was "
    "merged into what is kept."
)


def kept_section(
    backend: Backend,
    questions: Sequence[Question],
    policies: Sequence[str],
    answers: Mapping[tuple[str, str], Answer],
) -> Section | None:
    """None where the back end does not say what is kept, or no question is small enough."""
    cards: list[Card] = []
    for question in _chosen(questions, policies, answers):
        pictures = list(question.pictures())
        found = list(_cards(backend, question, policies, pictures, answers))
        if found:
            cards += [
                Card(_asked(question), (f"True answer: {question.truth}",), wide=True),
                *found,
            ]
    return Section("What was kept", [_TEXT], cards=cards) if cards else None


def _chosen(
    questions: Sequence[Question],
    policies: Sequence[str],
    answers: Mapping[tuple[str, str], Answer],
) -> list[Question]:
    """One a task, where there is one the first that policies answer differently."""
    small = [one for one in questions if 0 < one.num_images <= MAX_IMAGES]

    def agreed(question: Question) -> bool:
        texts = {answers[question.key, policy].text for policy in policies}
        return len(texts) == 1

    by_task: dict[str, Question] = {}
    for question in sorted(small, key=agreed):
        by_task.setdefault(question.task, question)
    return sorted(by_task.values(), key=agreed)[:MAX_QUESTIONS]


def _cards(
    backend: Backend,
    question: Question,
    policies: Sequence[str],
    pictures: Sequence[Image.Image],
    answers: Mapping[tuple[str, str], Answer],
) -> Iterator[Card]:
    for policy in policies:
        positions = backend.kept(Job(question, policy))
        if positions is None:
            continue
        shares = shares_of(positions)
        shown = panels(positions, pictures, shares, side=SIDE)
        answer = answers[question.key, policy]
        marked = {1.0: "right", 0.0: "wrong"}.get(answer.score, f"{answer.score:.0%} right")
        said = answer.text if answer.error is None else f"no answer: {answer.error}"
        kept = "everything kept" if policy == FULL else f"{shares.kept_T.mean():.0%} of tokens kept"
        yield Card(
            title=policy,
            text=(f"{said} ({marked})", kept),
            images=[
                (png_url(one.image, optimize=True), f"{one.title}, {policy}: {one.caption}")
                for one in shown
            ],
        )


def _asked(question: Question) -> str:
    """The last thing that was said."""
    content = question.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")
