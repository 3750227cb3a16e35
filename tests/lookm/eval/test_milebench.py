"""MileBench from disk: format, prompt, truncation, and a whole run on a small data set."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lookm.errors import ConfigError
from lookm.eval.__main__ import main
from lookm.eval.milebench import HERE, Truncation, cut, parts_of, prompt, questions
from tests.lookm.eval.milebench_files import write_dataset

CHOICES = ["a red star", "a blue ring", "nothing"]


class Letters:
    """A tokenizer with a token for every letter."""

    def encode(self, text: Any, add_special_tokens: Any) -> Any:
        assert add_special_tokens is False
        return SimpleNamespace(ids=[ord(sign) for sign in text])

    def decode(self, ids: Any, skip_special_tokens: Any) -> Any:
        assert skip_special_tokens is False
        return "".join(map(chr, ids))


def limit(max_tokens: Any, image_tokens: int = 10) -> Any:
    return Truncation(Letters(), max_tokens, image_tokens)


def test_a_multiple_choice_prompt_is_instruction_context_choices_and_the_call_for_an_answer() -> (
    None
):
    task = {
        "context": "First {image#1} then {table#2}. What is new?",
        "images_path": ["a.png", "b.png"],
        "choice_list": CHOICES,
    }
    text, left = prompt("WebQA", "Look.", task, ["a", "b"], None)
    assert text == (
        f"Look.\nFirst {HERE} then {HERE}. What is new?\nChoice list: \nA. a red star\n"
        "B. a blue ring\nC. nothing\nYour answer is: "
    )
    assert left == ["a", "b"]
    gpr, _ = prompt("GPR1200", "Look.", task, ["a", "b"], None)
    assert "\nChoice list: \na red star\na blue ring\nnothing\nYour answer is: " in gpr


def test_an_open_prompt_has_no_call_for_an_answer() -> None:
    task = {"context": "{image#1}\nWhy?", "images_path": ["a.png"]}
    assert prompt("ALFRED", "Look.", task, ["a"], None) == (f"Look.\n{HERE}\nWhy?", ["a"])


def test_a_combined_prompt_has_one_image_before_all_and_numbers_in_the_text() -> None:
    task = {"context": "{image#1}{image#2} Same?", "images_path": ["a.png", "b.png"]}
    text, left = prompt("ALFRED", "Look.", task, ["ab"], None, combined=True)
    assert text == f"{HERE}\nLook.\n<Image 1> <Image 2>  Same?"
    assert left == ["ab"]


@pytest.mark.parametrize(
    ("max_tokens", "context", "left"),
    [
        (34, f"aa{HERE}bbb{HERE}cccc", ["1", "2"]),  # 5 + 2 + 10 + 3 + 10 + 4
        (33, f"{HERE}bbb{HERE}cccc", ["1", "2"]),  # "aa" does not fit, its image does
        (32, f"{HERE}bbb{HERE}cccc", ["1", "2"]),  # exactly
        (31, f"bbb{HERE}cccc", ["2"]),  # the first image does not fit
        (22, f"bbb{HERE}cccc", ["2"]),
        (21, f"{HERE}cccc", ["2"]),
        (19, f"{HERE}cccc", ["2"]),
        (18, "cccc", []),
        (9, "cccc", []),
        (8, "ccc", []),  # only the last text is ever cut, to its end
        (5, "", []),
    ],
)
def test_a_long_prompt_loses_its_middle_from_the_left(
    max_tokens: Any, context: Any, left: Any
) -> None:
    whole = f"aa{HERE}bbb{HERE}cccc"
    assert cut(whole, ["1", "2"], "Look.", limit(max_tokens)) == (context, left)


def test_images_are_paired_with_placeholders_from_the_back() -> None:
    assert cut(f"a{HERE}b{HERE}c", ["1"], "", None) == (f"ab{HERE}c", ["1"])
    assert cut(f"a{HERE}b", ["1", "2"], "", None) == (f"{HERE}a{HERE}b", ["1", "2"])


def test_two_images_in_a_row_get_a_line_each() -> None:
    image = {"type": "image"}
    assert parts_of(f"Look.\n{HERE}{HERE}Why?") == [
        {"type": "text", "text": "Look.\n"}, image, {"type": "text", "text": "\n"}, image,
        {"type": "text", "text": "\nWhy?"},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("MileBench")
    ask = "{image#1}{image#2} What is in image 1?"
    write_dataset(folder, "WebQA", "multi-choice", [(ask, 2, CHOICES, "nothing")] * 2)
    needle = [("{image#1} The code word is apple. What is the code word?", 1, None, "apple")]
    write_dataset(folder, "TextNeedleInAHaystack", "open-ended", needle)
    write_dataset(folder, "ALFRED", "open-ended", [("{image#1} Describe it.", 1, None, "a star")])
    return folder


def test_samples_become_questions_in_the_files_order_with_their_pictures(data: Any) -> None:
    found = list(questions(data, ["WebQA"], None))
    assert [one.task for one in found] == ["WebQA", "WebQA"]
    assert [one.num_images for one in found] == [2, 2]
    assert [picture.mode for picture in found[0].pictures()] == ["RGB", "RGB"]
    kinds = [part["type"] for part in found[0].messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    assert found[0].key != found[1].key
    assert found[0].mark("C").score == 1.0
    assert [one.key for one in questions(data, ["WebQA"], None, count=1)] == [found[0].key]


def test_all_data_sets_that_are_there_are_read_without_names(data: Any) -> None:
    assert {one.task for one in questions(data, None, None)} == {
        "WebQA", "TextNeedleInAHaystack", "ALFRED",
    }  # fmt: skip


def test_a_combined_variant_is_read_from_its_own_files(data: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path, "WebQA", "multi-choice", [("{image#1}?", 1, CHOICES, "nothing")])
    home = tmp_path / "WebQA"
    (home / "images").rename(home / "combined_1_images")
    content = json.loads((home / "WebQA.json").read_text())
    content["data"][0]["task_instance"]["combined_1_images"] = ["1_0.png"]
    (home / "WebQA.json").write_text(json.dumps(content))
    (found,) = questions(tmp_path, None, None, combined=1)
    assert found.messages[0]["content"][0] == {"type": "image"}
    assert len(found.pictures()) == 1


def test_what_is_not_in_the_format_is_refused_with_its_place(data: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MileBench data set"):
        list(questions(tmp_path, None, None))
    with pytest.raises(ConfigError, match=r"cannot read .*IEdit\.json"):
        list(questions(data, ["IEdit"], None))
    write_dataset(tmp_path, "IEdit", "open-ended", [("{image#1}?", 1, None, "x")])
    (tmp_path / "IEdit" / "images" / "1_0.png").unlink()
    with pytest.raises(ConfigError, match=r"1_0\.png is missing"):
        list(questions(tmp_path, None, None))
    (tmp_path / "IEdit" / "IEdit.json").write_text('{"meta_data": {}, "data": [{}]}')
    with pytest.raises(ConfigError, match="not in MileBench's format"):
        list(questions(tmp_path, None, None))


def test_a_run_gives_the_papers_columns_for_each_policy(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--suite", "milebench", "--data", str(data), "--policies", "look-m@1.0", "h2o@0.5"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert list(found["columns"]) == ["full", "look-m@1.0", "h2o@0.5"]
    assert found["columns"]["full"]["NH"] in (0.0, 1.0)
    assert found["columns"]["full"]["T-1"] is None
    assert found["rows"][1]["agrees"] == 1.0
    assert found["rows"][0]["failed"] == 0
    assert found["settings"]["prompt"] == "1472 tokens, 64 an image"
    assert "| kv_cache | T-1 |" in capsys.readouterr().out
    assert "MileBench's columns" in (tmp_path / "report.html").read_text().replace("&#x27;", "'")
