"""The demo suite: held-out questions in seven families, and how their answers are judged."""

from typing import Any

import pytest

from lookm.demo.tasks import BY_NAME
from lookm.errors import RequestError
from lookm.eval.demo import FAMILIES, lenient, questions


def drawn(families: Any = ("attribute",), sizes: Any = (2,), count: int = 4, seed: int = 0) -> Any:
    return list(questions(families, sizes, count, seed))


def pixels(one: Any) -> Any:
    return [picture.tobytes() for picture in one.pictures()]


def test_families_are_milebench_kinds_made_of_the_demo_models_tasks() -> None:
    wanted = {"needle", "attribute", "listing", "change", "retrieval", "note", "counting"}
    assert set(FAMILIES) == wanted
    assert {kind for kinds in FAMILIES.values() for kind in kinds} <= set(BY_NAME)


def test_a_seed_names_the_questions_and_another_seed_names_others() -> None:
    first, again, other = drawn(seed=0), drawn(seed=0), drawn(seed=1)
    assert [one.key for one in first] == [one.key for one in again]
    assert [pixels(one) for one in first] == [pixels(one) for one in again]
    assert {one.key for one in first}.isdisjoint({one.key for one in other})
    assert [pixels(one) for one in first] != [pixels(one) for one in other]


def test_a_larger_count_keeps_the_questions_of_a_smaller_one() -> None:
    few, many = drawn(list(FAMILIES), (2, 4), 2), drawn(list(FAMILIES), (2, 4), 4)
    assert {one.key for one in few} < {one.key for one in many}
    assert {one.task for one in few} == set(FAMILIES)


def test_the_true_answer_earns_full_marks_and_another_none() -> None:
    for one in drawn(list(FAMILIES), (4,), 3):
        assert (one.mark(one.truth).score, one.mark(one.truth).lenient) == (1.0, 1.0)
        assert one.mark(f" {one.truth}\n").score == 1.0
        assert one.mark("no").score == 0.0


@pytest.mark.parametrize(
    ("told", "truth", "share"),
    [
        ("The star is red.", "The star is blue.", 2 * 1 / 4),
        ("Image 1 is red and image 2 is blue.", "Image 1 is red and image 2 is green.", 2 * 3 / 8),
        ("Image 1 is red and image 2 is blue.", "Image 1 is blue and image 2 is red.", 2 * 2 / 8),
        ("", "The star is red.", 0.0),
        ("the image shows a", "the image is", 1.0),
        ("The star is in the top left.", "The star is on the left.", 2 * 2 / 5),
    ],
)
def test_the_lenient_mark_is_the_f1_of_news_words_in_order(
    told: Any, truth: Any, share: Any
) -> None:
    assert lenient(told, truth) == pytest.approx(share)


def test_an_unknown_family_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(RequestError, match="needle, attribute"):
        drawn(["nope"])
