"""The suite of conversations, on a few talks."""

import json
from pathlib import Path

import pytest

from lookm.config import EngineConfig
from lookm.demo.words import ORDINALS
from lookm.engine import Engine
from lookm.eval import turns, turns_table
from lookm.eval.__main__ import main


def test_each_turn_asks_about_another_picture() -> None:
    for number in range(20):
        talk = turns.draw_talk(6, 4, seed=1, number=number)
        named = set()
        for _, answer in talk.questions:
            words = answer.lower().rstrip(".")
            named |= {
                i
                for i in range(6)
                if f"image {i + 1}" in words or f"the {ORDINALS[i]} image" in words
            }
        assert len(talk.pictures) == 6
        assert len(named) == 4, talk.questions


def test_a_talk_is_a_function_of_seed_and_number() -> None:
    first, again, other = (turns.draw_talk(3, 2, 0, number) for number in (5, 5, 6))
    assert first.questions == again.questions
    assert first.questions != other.questions


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_config(EngineConfig(model="llava-demo", dtype="float32"))


def test_exact_answers_as_if_nothing_were_known_and_kept_keeps_more_over_time(
    engine: Engine,
) -> None:
    talks = [turns.draw_talk(3, 3, seed=2, number=number) for number in range(2)]
    found = {
        (policy, reuse): held for policy, reuse, held in turns.study(engine, ["look-m@0.3"], talks)
    }
    none, exact, kept = (found["look-m@0.3", reuse] for reuse in turns.REUSES)
    for fresh, same in zip(none, exact, strict=True):
        assert [turn.right for turn in fresh] == [turn.right for turn in same]
        assert [turn.kept_share for turn in fresh] == [turn.kept_share for turn in same]
        assert all(turn.known_share == 0 for turn in fresh)
        assert same[0].known_share == 0
        assert all(turn.known_share > 0.5 for turn in same[1:])
    for talk in kept:
        assert talk[-1].kept_share > talk[0].kept_share
        assert all(turn.known_share > 0.5 for turn in talk[1:])


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "turns.json"
    asked = ["--suite", "turns", "--count", "1", "--images", "4", "--policies", "full"]
    assert main([*asked, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [row["reuse"] for row in report["rows"]] == ["none", "exact"]
    assert next(turns_table.lines(report)) in capsys.readouterr().out


def test_fewer_pictures_than_turns_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "turns", "--images", "2"]) == 1
    assert "4 pictures" in capsys.readouterr().err
