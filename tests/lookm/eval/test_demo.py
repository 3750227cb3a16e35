"""Evaluation: the same questions under every policy, against the truth and the full cache."""

from lookm import Engine, EngineConfig
from lookm.eval.__main__ import main
from lookm.eval.demo import Answer, ask, draw_exams, score, table


def answer(policy, text, right, ratio=1.0):
    return Answer(policy, "what", 2, text, right, ratio)


def test_a_score_counts_right_answers_and_agreement_with_full():
    full = [answer("full", "a", True), answer("full", "b", False)]
    kept = [answer("h2o@0.2", "a", True, 0.2), answer("h2o@0.2", "c", False, 0.3)]
    found = score(kept, full)
    assert (found.right, found.agrees, found.asked) == (0.5, 0.5, 2)
    assert found.bytes_ratio == 0.25
    assert score(full, full).agrees == 1.0
    assert "| `h2o@0.2` | 25% | 50% ± 35% | 50% |" in table([found])


def test_questions_are_the_same_for_a_seed_and_other_for_another():
    first, again, other = (draw_exams(["what"], [2], 4, seed) for seed in (0, 0, 1))
    assert [e.answer for e in first] == [e.answer for e in again]
    assert [e.pictures[0].tobytes() for e in first] != [e.pictures[0].tobytes() for e in other]


def test_keeping_everything_answers_exactly_as_full_does():
    engine = Engine.from_config(EngineConfig(kv_cache_bytes=2**28, attention="reference"))
    exams = draw_exams(["what", "colour"], [1, 2], 3)
    at_full = ask(engine, exams, "full")
    assert score(ask(engine, exams, "look-m@1.0"), at_full).agrees == 1.0
    assert score(at_full, at_full).right > 0.5
    assert score(ask(engine, exams, "streaming@0.1"), at_full).bytes_ratio < 0.5


def test_the_command_prints_the_table(capsys):
    assert main(["--kv-cache", "full", "h2o@0.5", "--images", "1", "--count", "1"]) == 0
    assert "| `h2o@0.5` |" in capsys.readouterr().out


def test_an_unknown_policy_is_one_line(capsys):
    assert main(["--kv-cache", "nope", "--images", "1", "--count", "1"]) == 1
    assert "unknown method" in capsys.readouterr().err
