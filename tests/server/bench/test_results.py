"""README's tables are what the committed runs say."""

import json
import re

import pytest

from server.bench.results import MARKED, README, RUNS, TABLES, rendered

TEXT = README.read_text(encoding="utf-8")
MARKERS = [found["name"] for found in MARKED.finditer(TEXT)]


def test_the_readme_shows_the_committed_runs():
    assert rendered(TEXT, RUNS) == TEXT, "run `make results`"


def test_every_marker_is_paired_and_named_once():
    assert len(MARKERS) == len(set(MARKERS))
    assert len(re.findall(r"<!-- results:", TEXT)) == 2 * len(MARKERS)


def test_every_table_has_its_run_and_every_run_its_table():
    runs = {path.stem for path in RUNS.glob("*.json")}
    assert set(MARKERS) - {"gpu"} == runs - {"gpu"}


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_run_says_where_it_comes_from(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["kind"] in TABLES
    assert run["command"]
    assert re.fullmatch(r"[0-9a-f]{7,}", run["commit"]), "measure committed code"
    assert "/" not in run["hardware"]


def test_a_changed_run_changes_the_table(tmp_path):
    run = json.loads((RUNS / "own.json").read_text(encoding="utf-8"))
    run["rows"][0]["prefill_s"] *= 2
    (tmp_path / "own.json").write_text(json.dumps(run))
    text = "x\n<!-- results:own:begin -->\nold\n<!-- results:own:end -->\ny\n"
    before, after = rendered(text, RUNS), rendered(text, tmp_path)
    assert before != after
    assert "old" not in after
    assert rendered(after, tmp_path) == after


def test_a_marker_without_a_run_shows_nothing(tmp_path):
    text = "<!-- results:gpu:begin -->\n<!-- results:gpu:end -->\n"
    assert rendered(text, tmp_path) == text
