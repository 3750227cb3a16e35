"""The page's pictures: images as each policy kept them, beside the answers that were given."""

import dataclasses
import re
from typing import Any

import numpy as np
from PIL import Image

from lookm.eval.page import html_page
from lookm.eval.pictures import kept_section
from lookm.eval.questions import Answer
from lookm.kept import KeptPositions
from lookm.models.places import PlacedGrid, PlacedImage
from lookm.positions import Positions
from tests.lookm.eval.stub_backend import Scripted, question

POLICIES = ["full", "look-m@0.2"]
HOSTILE = '<img src=x onerror=alert(1)>"'


class Telling(Scripted):
    """Keeps the first patch of four, at full all."""

    def kept(self, job: Any) -> Any:
        kept = np.ones((1, 1, 4), dtype=bool)
        kept[..., 1:] = job.policy == "full"
        image = PlacedImage(8, 8, 0, 4, (PlacedGrid(0, 2, 2, 2, (0, 0, 8, 8)),))
        return Positions(KeptPositions(4, np.packbits(kept, axis=-1)), (image,))


def asked(key: str, task: str, **more: Any) -> Any:
    made = question(key, task, num_images=1)
    return dataclasses.replace(made, pictures=lambda: [Image.new("RGB", (8, 8), "red")], **more)


def answered(questions: Any, texts: Any = ()) -> dict[tuple[str, str], Answer]:
    found = {}
    for one in questions:
        for policy in POLICIES:
            text = dict(texts).get((one.key, policy), "yes")
            score = float(text == one.truth)
            said = (one.truth, text, score, None, 1, 2, None)
            found[one.key, policy] = Answer(one.key, policy, one.task, 1, *said)
    return found


def test_each_policy_has_its_answer_and_its_picture() -> None:
    questions = [asked(HOSTILE, "needle"), asked("q2", "count")]
    answers = answered(questions, {(HOSTILE, "look-m@0.2"): HOSTILE})
    section = kept_section(Telling(), questions, POLICIES, answers)
    assert section is not None
    page = html_page("run", "", [section])
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 4
    assert "(wrong)" in page
    assert page.count("(right)") == 3
    assert "25% of tokens kept" in page
    assert "<img src=x" not in page, "what a model answers is text"
    assert all("alt=" in tag for tag in re.findall(r"<img [^>]*>", page))


def test_questions_whose_answers_differ_come_first_one_a_task() -> None:
    questions = [asked(f"q{n}", "needle" if n < 4 else f"t{n}") for n in range(9)]
    answers = answered(questions, {("q3", "look-m@0.2"): "no", ("q7", "look-m@0.2"): "no"})
    section = kept_section(Telling(), questions, POLICIES, answers)
    assert section is not None
    titles = [card.title for card in section.cards if card.wide]
    assert titles == ["q3", "q7", "q4"]


def test_there_is_none_where_nobody_tells_or_images_are_many() -> None:
    few, many = [asked("q", "needle")], [asked("q", "needle", num_images=9)]
    assert kept_section(Scripted(), few, POLICIES, answered(few)) is None
    assert kept_section(Telling(), many, POLICIES, answered(many)) is None
