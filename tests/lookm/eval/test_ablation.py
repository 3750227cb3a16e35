"""The study: questions from seeds, budgets that match, tables that say what was kept."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from lookm.eval.ablation import SUITES, Point, Study, draw_suite, main, run, table, variants
from lookm.policy import PRESETS, nominal_rows, resolve


def asked(exams: Any) -> Any:
    return [(str(exam.messages), exam.answer, exam.pictures[0].tobytes()) for exam in exams]


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_follows_from_its_seed(suite: Any) -> None:
    first, again = (asked(draw_suite(suite, 1, seed=100)) for _ in range(2))
    assert first == again
    assert first != asked(draw_suite(suite, 1, seed=101))


@pytest.fixture(scope="module")
def study() -> Any:
    return Study(variants(), count=1, seed=100)


def test_text_heavy_prompts_hold_more_text_than_a_fifth(study: Any) -> None:
    prompts = study.prompts("text")
    shares = [1 - float(prompt.is_image_T.float().mean()) for prompt in prompts]
    assert 0.35 < sum(shares) / len(shares) < 0.45


@pytest.mark.parametrize("row", ["look-m-plus", "h2o", "streaming", "meda"])
@pytest.mark.parametrize("suite", ["first", "text"])
def test_every_row_keeps_the_same_or_says_that_it_cannot(study: Any, row: Any, suite: Any) -> None:
    prompts = study.prompts(suite)
    policy = study.matched(row, prompts, 0.2)
    recipe = resolve(policy)
    kept = [nominal_rows(recipe, prompt.is_image_T) / len(prompt.ids) for prompt in prompts]
    mean = sum(kept) / len(kept)
    protects = row == "meda" and suite == "text"
    assert mean > 0.3 if protects else mean == pytest.approx(0.2, abs=0.01)


def test_variants_change_one_thing_each_and_leave_the_preset_alone() -> None:
    rows = variants()
    assert rows["look-m-plus"] == PRESETS["look-m-plus"]
    assert len(set(map(repr, rows.values()))) == len(rows)


def test_an_answer_is_counted_and_a_run_goes_on_where_it_stopped(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(
        kept=[0.5],
        suites=["text"],
        seed=100,
        count=1,
        recent=None,
        out=tmp_path / "points.jsonl",
    )
    rows = ["full", "look-m-plus", "drops what it evicts"]
    points = run(study, options, rows)
    assert [point.row for point in points] == rows
    assert all(point.asked == 12 for point in points)
    assert points[0].right >= 10
    assert points[1].right >= 9
    assert points[1].kept == pytest.approx(0.5, abs=0.03)
    lines = options.out.read_text()
    monkeypatch.setattr(study, "ask", None)  # nothing may be asked again
    assert run(study, options, rows) == points
    assert options.out.read_text() == lines
    assert "| full |" in capsys.readouterr().out


def test_a_table_has_errors_and_what_was_kept_beyond_the_budget() -> None:
    points = [
        Point("one", 0.2, "mixed", 100, 5, asked=100, right=80, kept=0.201),
        Point("one", 0.2, "text", 100, 5, asked=100, right=50, kept=0.41),
        Point("one", 0.1, "text", 100, 5, asked=100, right=0, kept=0.1),
    ]
    row = table(points, 0.2).splitlines()[-1]
    assert row == "| one | 80% ± 4% | - | - | 50% ± 5% (kept 41%) | 65% ± 3% |"


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--suites", "nope"])


def test_the_documents_tables_have_every_variant_and_every_preset() -> None:
    document = (Path(__file__).parents[3] / "docs" / "look-m-plus.md").read_text()
    tables = re.findall(r"^\| \d+% kept \|.*\n\|---.*\n((?:\|.*\n)+)", document, re.MULTILINE)
    rows = [[line.split("|")[1].strip() for line in table.splitlines()] for table in tables]
    assert rows[0] == list(variants())
    assert rows[1:5] == [list(PRESETS)] * 4
    assert all(set(names) < set(PRESETS) for names in rows[5:])
