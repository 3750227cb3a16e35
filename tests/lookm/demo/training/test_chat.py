"""The chat template, its Python twin, and the conversations training draws."""

from __future__ import annotations

import random
from typing import Any

import pytest
from jinja2 import Environment

from lookm.demo.scenes import draw_scene
from lookm.demo.training.chat import (
    END,
    IMAGE,
    TEMPLATE,
    draw_question,
    draw_tree,
    draw_world,
    markup,
)

PART: dict[str, str] = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def user(*content: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


CHATS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "user", "content": " Hello "}], "USER:Hello"),
    ([user(text("Hi"), text("you"))], "USER:Hi you"),
    ([user(PART, PART, text("Why?"))], "USER:Image 1:<image>Image 2:<image>Why?"),
    ([user(text("a"), PART, text("b"), PART)], "USER:aImage 1:<image>bImage 2:<image>"),
    ([{"role": "system", "content": "Be brief."}, user(text("x"))], "SYSTEM:Be brief.USER:x"),
    ([{"role": "developer", "content": [text("Be brief.")]}], "SYSTEM:Be brief."),
    (
        [user(PART, text("x")), {"role": "assistant", "content": "y"}, user(PART, text("z"))],
        "USER:Image 1:<image>xASSISTANT:y</s>USER:Image 2:<image>z",
    ),
    ([user(text("x")), {"role": "assistant", "content": None}], "USER:xASSISTANT:</s>"),
]


@pytest.mark.parametrize(("messages", "expected"), CHATS)
def test_template_and_its_twin_render_the_same(
    messages: list[dict[str, Any]], expected: str
) -> None:
    template = Environment(autoescape=False).from_string(TEMPLATE)
    for prompt in (False, True):
        rendered = template.render(messages=messages, add_generation_prompt=prompt)
        assert rendered == markup(messages, prompt) == expected + "ASSISTANT:" * prompt


def test_images_are_numbered_over_the_whole_conversation() -> None:
    turns = [
        message for _ in range(4) for message in (user(PART), {"role": "assistant", "content": "."})
    ]
    rendered = markup(turns)
    assert [f"Image {i}:<image>" in rendered for i in range(1, 6)] == [True] * 4 + [False]


def test_a_tree_is_whole_conversations() -> None:
    rng = random.Random(2)
    for num_images in (0, 1, 2, 5, 16):
        for _ in range(40):
            world = draw_world(rng, [draw_scene(rng) for _ in range(num_images)])
            tree = draw_tree(rng, world, 300)
            assert tree.branches
            for branch in tree.branches:
                whole = "".join(piece.text for piece in (*tree.root, *branch))
                assert whole.count(IMAGE) == num_images
                assert whole.count("ASSISTANT:") == whole.count(END)
                assert whole.endswith(END)
                assert branch[-1].task is not None


def test_small_talk_is_a_small_share() -> None:
    rng = random.Random(4)
    world = draw_world(rng, [draw_scene(rng) for _ in range(4)])
    tasks = [draw_question(rng, world).task for _ in range(2000)]
    assert 0.01 < tasks.count("small talk") / len(tasks) < 0.06
