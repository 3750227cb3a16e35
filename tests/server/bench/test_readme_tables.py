"""README's tables are what the committed runs say."""

import json
import re

import pytest

from server.bench.readme_tables import MARKED, PAGES, RUNS, evaluation, plain, rendered

TEXT = "".join(page.read_text(encoding="utf-8") for page in PAGES)
MARKERS = [found["name"] for found in MARKED.finditer(TEXT)]


def test_the_readme_shows_the_committed_runs():
    assert rendered(TEXT, RUNS) == TEXT, "run `make results`"


def test_every_marker_is_paired_and_named_once():
    assert len(MARKERS) == len(set(MARKERS))
    assert len(re.findall(r"<!-- results:", TEXT)) == 2 * len(MARKERS)


def test_every_table_has_its_run():
    """But for the GPU's: there may be nobody who had one."""
    assert set(MARKERS) - {"gpu"} <= {path.stem for path in RUNS.glob("*.json")}
    assert {"own", "peers", "capacity"} <= set(MARKERS)


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_run_says_where_it_comes_from(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["kind"]
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


def test_answers_are_shown_with_their_intervals():
    row = {"policy": "full", "asked": 420, "bytes_ratio": 1.0, "right": 0.5, "agrees": 1.0}
    bounds = {"right_low": 0.45, "right_high": 0.55, "agrees_low": 0.99, "agrees_high": 1.0}
    *_, line = evaluation({"metric": "right", "rows": [row | bounds]})
    assert line == "| `full` | 100% | 50% (45% to 55%) | 100% (99% to 100%) |"


def test_a_run_of_another_kind_is_shown_as_it_is():
    lines = list(plain({"rows": [{"what": "prefill", "time_s": 1.23456}, {"what": "x"}]}))
    assert lines == ["| what | time s |", "|---|---|", "| prefill | 1.235 |", "| x | |"]
