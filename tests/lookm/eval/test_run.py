"""Runs: every answer kept at once, gone on with after a kill, never mixed with other settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from lookm.errors import ConfigError
from lookm.eval.run import ask_all, open_store, with_full
from lookm.eval.scores import ALL, bootstrap, interval, score_tasks, wilson
from tests.lookm.eval.stub_backend import Scripted, question

QUESTIONS = [question("q1"), question("q2"), question("q3", task="note")]
POLICIES = ["full", "h2o@0.2"]


def run(folder: Any, backend: Any, policies: Any = POLICIES, **options: Any) -> Any:
    store = open_store(folder, backend, {"suite": "demo"}, **options)
    ask_all(backend, QUESTIONS, policies, store)
    return store


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    killed, second = Scripted(dies_after=3), Scripted()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed)
    store = run(tmp_path, second)
    assert len(killed.asked) == 3
    assert sorted(killed.asked + second.asked) == sorted(
        (one.key, policy) for one in QUESTIONS for policy in POLICIES
    )
    assert len(store.answers) == 6
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 6


def test_a_half_written_last_line_is_asked_again(tmp_path: Path) -> None:
    run(tmp_path, Scripted())
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    again = Scripted()
    run(tmp_path, again)
    assert again.asked == [("q3", "h2o@0.2")]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(path.read_text().splitlines()) == 6


def test_line_separators_inside_an_answer_do_not_break_its_line(tmp_path: Path) -> None:
    odd = "a\u2028b\nc\x85d"
    run(tmp_path, Scripted({("q1", "full"): odd}))
    assert run(tmp_path, Scripted(dies_after=0)).answers["q1", "full"].text == odd


def test_more_policies_may_be_asked_in_the_same_folder(tmp_path: Path) -> None:
    run(tmp_path, Scripted())
    more = Scripted()
    run(tmp_path, more, [*POLICIES, "snapkv@0.2"])
    assert {policy for _, policy in more.asked} == {"snapkv@0.2"}


def test_an_answer_that_failed_is_asked_again(tmp_path: Path) -> None:
    failing = Scripted({("q1", "full"): None})
    assert run(tmp_path, failing).answers["q1", "full"].error == "too long"
    again = Scripted()
    assert run(tmp_path, again).answers["q1", "full"].error is None
    assert again.asked == [("q1", "full")]


def test_other_settings_are_refused_by_name_and_restart_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, Scripted())
    other = Scripted(settings={"dtype": "float32"})
    with pytest.raises(ConfigError, match=r"dtype was not set, is float32.*--restart"):
        run(tmp_path, other)
    run(tmp_path, other, restart=True)
    assert len(other.asked) == 6


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run(tmp_path, Scripted())
    path = tmp_path / "answers.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ConfigError, match="line 1"):
        run(tmp_path, Scripted())


def test_full_is_always_asked_and_nothing_twice() -> None:
    assert with_full(["h2o@0.2", "h2o@0.2"]) == ["full", "h2o@0.2"]
    assert with_full(["h2o@0.2", "full"]) == ["full", "h2o@0.2"]


def test_scores_count_right_answers_agreement_bytes_and_failures_per_task(tmp_path: Path) -> None:
    texts = {
        ("q1", "full"): "no", ("q1", "h2o@0.2"): "no",
        ("q2", "h2o@0.2"): "maybe", ("q3", "h2o@0.2"): None,
    }  # fmt: skip
    store = run(tmp_path, Scripted(texts))
    scores = score_tasks(store.answers, [one.key for one in QUESTIONS], POLICIES)
    assert list(scores) == [ALL, "needle", "note"]
    full, kept = scores[ALL]
    assert (full.right, full.agrees, full.bytes_ratio, full.failed) == (2 / 3, 1.0, 1.0, 0)
    assert (kept.right, kept.agrees, kept.failed) == (0.0, 1 / 3, 1)
    assert kept.bytes_ratio == pytest.approx(0.2)
    assert kept.lenient == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert [one.right for one in scores["needle"]] == [0.5, 0.0]
    assert scores["note"][1].agrees == 0.0


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_equal_newcombes_published_ones(
    right: Any, asked: Any, low: Any, high: Any
) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3 (0 of 20: z² / (n + z²))."""
    assert wilson(right, asked) == pytest.approx((low, high), abs=6e-5)


def test_marks_in_between_are_bootstrapped_and_shares_are_not() -> None:
    marks = [0.1, 0.4, 0.35, 0.8, 0.2, 0.6]
    low, high = interval(marks)
    assert (low, high) == bootstrap(marks)
    assert min(marks) < low < sum(marks) / 6 < high < max(marks)
    assert interval([1.0, 0.0]) == wilson(1, 2)
    assert bootstrap([0.5] * 4) == (0.5, 0.5)
