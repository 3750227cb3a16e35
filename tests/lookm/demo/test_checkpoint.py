"""The shipped checkpoint: small, loadable by plain `transformers`, and truly trained."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor

from lookm.demo import checkpoint_path
from lookm.demo.exams import Exam, draw_exam
from lookm.demo.tasks import BY_NAME
from lookm.demo.training.chat import TEMPLATE
from lookm.demo.training.measure import Cell, Examiner, measure, table


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    torch.set_num_threads(1)
    return Examiner(checkpoint_path())


def test_weights_are_at_most_12_mb_of_bfloat16() -> None:
    weights = checkpoint_path() / "model.safetensors"
    assert weights.stat().st_size <= 12_000_000
    config = json.loads((checkpoint_path() / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlavaForConditionalGeneration"]


def test_generation_stops_at_the_end_of_a_turn() -> None:
    settings = json.loads((checkpoint_path() / "generation_config.json").read_text())
    tokens = AutoProcessor.from_pretrained(checkpoint_path()).tokenizer
    assert settings["eos_token_id"] == tokens.convert_tokens_to_ids("</s>")
    assert settings["pad_token_id"] == tokens.convert_tokens_to_ids("<pad>")


def test_shipped_template_is_the_code_s_template() -> None:
    assert AutoProcessor.from_pretrained(checkpoint_path()).chat_template == TEMPLATE


def test_text_is_a_small_share_of_a_prompt() -> None:
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    parts = [*[{"type": "image"}] * 8, {"type": "text", "text": "What is in image 2?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    ids = processor(text=prompt, images=[Image.new("RGB", (64, 64))] * 8)["input_ids"][0]
    image_tokens = sum(token == processor.image_token_id for token in ids)
    assert image_tokens == 8 * 64
    assert len(ids) - image_tokens == 17


def draw(kind: str, colour: str, size: tuple[int, int] = (200, 200)) -> Image.Image:
    """A picture as a stranger would draw it, not by our generator."""
    picture = Image.new("RGB", size, "white")
    box = (size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if kind == "circle" else pen.rectangle)(box, fill=colour)
    return picture


def test_strangers_pictures_are_named(examiner: Examiner) -> None:
    pictures = [draw("circle", "red"), draw("square", "blue", (64, 64))]
    parts = [{"type": "image"}, {"type": "image"}]
    exams = [
        Exam(
            "what",
            [{"role": "user", "content": [*parts, {"type": "text", "text": asked}]}],
            pictures,
            told,
        )
        for asked, told in (
            ("What is in image 1?", "Image 1 shows a red circle."),
            ("What is in image 2?", "Image 2 shows a blue square."),
            ("Describe all images.", "Image 1 shows a red circle. Image 2 shows a blue square."),
        )
    ]
    assert examiner.answers(exams) == [exam.answer for exam in exams]


def test_text_alone_gets_a_sensible_reply(examiner: Examiner) -> None:
    hello = Exam("small talk", [{"role": "user", "content": "Hello"}], [], "")
    assert examiner.answers([hello]) == ["Hello! Send me some images and ask me about them."]


def test_most_held_out_questions_are_answered_rightly(examiner: Examiner) -> None:
    cell = measure(examiner, BY_NAME["what"], num_images=4, count=16, seed=1)
    assert cell.asked == 16
    assert cell.right >= 12


def test_exams_repeat_and_skip_what_makes_no_sense() -> None:
    one, other = (draw_exam(BY_NAME["what"], 2, 0, 5) for _ in range(2))
    assert one is not None
    assert other is not None
    assert (one.messages, one.answer) == (other.messages, other.answer)
    assert draw_exam(BY_NAME["list colours"], 1, 0, 0) is None


def test_the_table_has_a_row_per_task() -> None:
    cells = [Cell("what", 1, 3, 4), Cell("what", 8, 4, 4), Cell("where", 8, 0, 0)]
    assert table(cells).splitlines()[2:] == ["| what | 0.75 | 1.00 |", "| where | - | - |"]
