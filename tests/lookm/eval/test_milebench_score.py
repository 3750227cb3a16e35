"""MileBench's scoring: hand-computed values, and the original's rules restated another way."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookm.errors import ConfigError
from lookm.eval.milebench_score import (
    COLUMNS,
    DATASETS,
    columns,
    extract,
    letter,
    normalise,
    scorer,
)
from tests.lookm.eval.milebench_files import restated_choice, restated_normalise

FOUR = ("foo", "bar", "the baz", "qux")
TEXT = st.text(st.sampled_from("abcdxyzAB 01.,()-'\"?\n"), max_size=24)


def chosen(told: Any, choices: Any = FOUR) -> Any:
    return extract(normalise(told), [normalise(choice) for choice in choices])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("  It's, well: (B) Foo-bar?\n", "it's well: b foo bar"),
        ("A. no", "a no"),
        ("3.5 m, or 3,500 mm (1-2)", "3.5 m or 3500 mm 12"),
        ("x-y, z", "x y z"),
        ("x -y a-b", "x y ab"),
        ("'quoted'", "quoted"),
        (".", ""),
        ("." * 40, "." * 8),
    ],
)
def test_answers_are_normalised_as_worked_out_by_hand(told: Any, said: Any) -> None:
    assert normalise(told) == said


@pytest.mark.parametrize(
    ("told", "letters"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("b", "B"),
        ("(B) bar", "B"),
        ("B. bar", "B"),
        ("(B) foo", "A"),  # the text of an option beats a letter that stands alone
        ("I think it is the baz.", "C"),
        ("thebaz", "C"),
        ("foo and bar", "A"),  # the first in the answer
        ("bar and foo", "B"),
        ("", "C"),
        ("?!", "C"),
        ("A B", "AB"),
        ("AB", "AB"),
        ("The answer is B", "AB"),  # every letter that names an option, as the original does
        ("It is B", "B"),
        ("none", ""),
    ],
)
def test_choices_are_extracted_as_worked_out_by_hand(told: Any, letters: Any) -> None:
    assert chosen(told) == letters


def test_an_option_with_a_point_in_it_is_found_with_its_letter_only() -> None:
    assert chosen("3.5", ("3.5", "4.5")) == ""
    assert chosen("A. 3.5", ("3.5", "4.5")) == "A"


def test_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
    many = [f"thing{index}x" for index in range(30)]
    assert chosen("thing27x", many) == "AB"


@settings(deadline=None)
@given(TEXT)
def test_normalising_equals_the_rules_restated(text: Any) -> None:
    assert normalise(text) == restated_normalise(text)


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, min_size=2, max_size=5))
def test_extracting_equals_the_rules_restated(told: Any, choices: Any) -> None:
    assert chosen(told, choices) == restated_choice(told, choices)


def judge(dataset: Any, kind: Any, truth: Any, told: Any, choices: Any = None) -> Any:
    return scorer(dataset, kind, truth, choices)(told)


def test_multiple_choice_is_right_where_the_letter_is_the_truths() -> None:
    assert judge("WebQA", "multi-choice", "bar", "B", FOUR) == 1.0
    assert judge("WebQA", "multi-choice", "bar", "A", FOUR) == 0.0
    assert judge("WebQA", "multi-choice", "The baz.", "", FOUR) == 1.0  # nothing said is C


def test_a_needle_is_a_word_of_the_answer_and_mmcoqa_a_part_of_it() -> None:
    for name in ("TextNeedleInAHaystack", "ImageNeedleInAHaystack"):
        assert judge(name, "open-ended", "17", "It is 17.") == 1.0
        assert judge(name, "open-ended", "17", "It is 170.") == 0.0
    assert judge("MMCoQA", "open-ended", "New York", "in new york city") == 1.0
    assert judge("MMCoQA", "open-ended", "New York", "york") == 0.0


@pytest.mark.parametrize(
    ("told", "truth", "f1"),
    [
        ("The red cat sat.", "the cat sat down", 0.75),  # LCS of 3 of 4 and 4
        ("cats", "cat", 0.0),  # no stemming
        ("a a b", "a b b", 1.0),  # each word once
        ("b a", "a b", 0.5),  # in order
        ("", "a", 0.0),
        ("a b c d", "a", 2 * 0.25 / 1.25),
        ("3.5 m", "3.5 km", 2 / 3),  # a point inside a number ends a sentence: {3, 5} of 3 and 3
        ("." * 40, "a", 0.0),
    ],
)
def test_rouge_l_equals_values_worked_out_by_hand(told: Any, truth: Any, f1: Any) -> None:
    assert judge("ALFRED", "open-ended", truth, told) == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "truth", "choices", "said"),
    [
        ("multi-choice", "nope", FOUR, "not in its choice_list"),
        ("multi-choice", "foo", None, "no rule"),
        ("essay", "foo", None, "essay"),
        ("open-ended", "?", None, "empty"),
    ],
)
def test_a_sample_that_cannot_be_scored_is_refused(
    kind: Any, truth: Any, choices: Any, said: Any
) -> None:
    with pytest.raises(ConfigError, match=said):
        scorer("WebQA", kind, truth, choices)


def test_columns_are_unweighted_means_over_the_data_sets_that_were_asked() -> None:
    assert list(COLUMNS) == [
        "T-1",
        "T-2",
        "T-3",
        "T-4",
        "S-1",
        "S-2",
        "S-3",
        "S-4",
        "S-5",
        "NH",
        "IR",
    ]
    assert len(set(DATASETS)) == 29
    found = columns(
        {"TextNeedleInAHaystack": 0.5, "ImageNeedleInAHaystack": 0.1, "MMCoQA": 0.25, "other": 1.0}
    )
    assert found["NH"] == pytest.approx(0.3)
    assert found["S-4"] == 0.25
    assert found["T-1"] is None
