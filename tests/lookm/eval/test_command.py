"""`lookm eval` on the demo model: what it writes, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from lookm.eval.__main__ import main
from lookm.eval.local import Local
from lookm.eval.questions import Job
from lookm.models.detail import Detail
from server.cli import app
from tests.lookm.eval.stub_backend import question


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("eval")
    asked = ["--policies", "look-m@1.0", "look-m@0.2", "--images", "2", "--count", "2"]
    assert main([*asked, "--out", str(out)], lambda: {"commit": "abc1234"}) == 0
    return out


def rows(out: Any) -> Any:
    found = json.loads((out / "scores.json").read_text())
    return found, {row["policy"]: row for row in found["rows"]}


def test_keeping_everything_agrees_with_full_on_every_question(ran: Any) -> None:
    found, by_policy = rows(ran)
    assert by_policy["look-m@1.0"]["agrees"] == 1.0
    assert by_policy["look-m@1.0"]["right"] == by_policy["full"]["right"] > 0.5
    assert by_policy["look-m@1.0"]["bytes_ratio"] == 1.0
    assert all(task[1]["agrees"] == 1.0 for task in found["tasks"].values())


def test_the_axis_is_what_was_kept_not_what_was_asked_for(ran: Any) -> None:
    ratio = rows(ran)[1]["look-m@0.2"]["bytes_ratio"]
    assert 0.2 < ratio < 0.4
    assert "KV bytes kept, of the full cache" in (ran / "report.html").read_text()


def test_scores_say_what_they_were_made_of(ran: Any) -> None:
    found, _ = rows(ran)
    assert found["kind"] == "eval"
    assert (found["commit"], found["seed"], found["suite"]) == ("abc1234", 0, "demo")
    assert found["settings"]["model"] == "llava-demo"
    assert set(found["tasks"]) == set(found["asked_by"]["tasks"])


def test_the_table_is_printed_and_the_second_time_nothing_is_asked(
    ran: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(self: Any, jobs: Any) -> Any:
        assert list(jobs) == []
        return iter(())

    monkeypatch.setattr(Local, "replies", no_more)
    asked = ["--policies", "look-m@0.2", "--images", "2", "--count", "2", "--no-report"]
    assert main([*asked, "--out", str(ran)]) == 0
    assert "| `look-m@0.2` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "nope"], "unknown method"),
        (["--tasks", "nope"], "needle, attribute"),
        (["--suite", "milebench"], "--data FOLDER"),
        (["--url", "nowhere", "--no-kv-cache-field"], "--policies full"),
        (["--tasks", "retrieval", "--images", "1"], "make no sense"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    arguments: Any, said: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_the_lookm_command_passes_options_on_and_says_where_a_run_was_made(
    ran: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ran` is gone on with: the command adds nothing but where it ran."""
    monkeypatch.setattr(Local, "replies", lambda self, jobs: iter(()))
    asked = ["eval", "--policies", "look-m@0.2", "--images", "2", "--count", "2", "--no-report"]
    typed = [*asked, "--out", str(ran)]
    monkeypatch.setattr("sys.argv", ["/somewhere/lookm", *typed])
    assert CliRunner().invoke(app, typed).exit_code == 0
    found, _ = rows(ran)
    assert found["command"] == "lookm " + " ".join(asked)
    assert {"commit", "hardware", "versions", "measured_at"} <= set(found)
    helped = CliRunner().invoke(app, ["eval", "--help"])
    assert "usage: lookm eval" in helped.output


def test_scores_are_written_where_they_are_kept_too(
    ran: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Local, "replies", lambda self, jobs: iter(()))
    kept = tmp_path / "eval-demo.json"
    asked = ["--policies", "look-m@0.2", "--images", "2", "--count", "2", "--no-report"]
    assert main([*asked, "--out", str(ran), "--json", str(kept)]) == 0
    assert kept.read_text() == (ran / "scores.json").read_text()


def test_a_question_that_cannot_be_asked_fails_alone(engine: Any) -> None:
    long = question("long")
    long = type(long)(
        "long", "t", [{"role": "user", "content": "a b " * 3000}], long.pictures,
        "yes", long.mark, 0, 5,
    )  # fmt: skip
    jobs = [Job(question("a"), "full"), Job(long, "full"), Job(question("b"), "h2o@0.5")]
    found = {one.job.question.key: one for one in Local(engine).replies(jobs)}
    assert "tokens" in found["long"].error
    assert found["a"].error is found["b"].error is None
    assert found["b"].kept_bytes <= found["b"].full_bytes


def test_a_budget_that_the_model_cannot_keep_to_is_an_error_of_each_question(engine: Any) -> None:
    shown = replace(
        question("a"),
        messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
        pictures=lambda: [Image.new("RGB", (64, 64))],
    )
    enough, less = (Local(engine, detail=Detail("auto", budget)) for budget in (64, 63))
    (fine,), (refused,) = (list(each.replies([Job(shown, "full")])) for each in (enough, less))
    assert fine.error is None
    assert "this image takes at least 64 tokens" in refused.error
    assert enough.settings["detail"] != less.settings["detail"]
    assert "detail" not in Local(engine).settings


def test_leaving_early_frees_the_engine(engine: Any) -> None:
    replies = Local(engine).replies([Job(question(name), "full") for name in "abc"])
    next(replies)
    replies.close()
    assert engine.stats().used_bytes == 0
    while engine.has_work:
        engine.step()


@pytest.fixture(scope="module")
def engine() -> Any:
    from lookm import Engine, EngineConfig

    return Engine.from_config(EngineConfig(kv_cache_bytes=2**28, attention="reference"))


def test_a_folder_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    asked = ["--policies", "full", "--images", "2", "--count", "1"]
    assert main([*asked, "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno ")
