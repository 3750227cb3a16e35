"""The fast training pass computes what plain `transformers` computes, on the same tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from lookm.demo import checkpoint_path
from lookm.demo.scenes import Scene, render, scene
from lookm.demo.training.bank import pixels_of
from lookm.demo.training.batches import Batcher
from lookm.demo.training.build import build_config, build_processor
from lookm.demo.training.chat import Piece, draw_tree, draw_world
from lookm.demo.training.curriculum import CORE, STAGES, Curriculum
from lookm.demo.training.feed import Source, batches, draw
from lookm.demo.training.forward import TreeForward
from lookm.demo.training.optim import trapezoid
from lookm.demo.training.vision import look

SCENES = [scene("test", 9, number) for number in range(12)]


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor(PreTrainedTokenizerFast.from_pretrained(checkpoint_path()))


def pictures(scenes: list[Scene]) -> list[object] | None:
    return [render(each) for each in scenes] or None


@pytest.mark.parametrize("num_images", [0, 1, 4])
def test_training_tokens_are_the_processors_tokens(
    processor: LlavaProcessor, num_images: int
) -> None:
    batcher = Batcher(processor.tokenizer, SCENES, seed=0, tokens=1000)
    rng = random.Random(num_images)
    for _ in range(6):
        scenes = rng.sample(SCENES, num_images)
        tree = draw_tree(rng, draw_world(rng, scenes), 500)
        for branch in tree.branches:
            pieces = (*tree.root, *branch)
            text = "".join(piece.text for piece in pieces)
            expected = processor(text=text, images=pictures(scenes))["input_ids"][0]
            ids = [
                token for piece in (Piece("<s>"), *pieces) for token in batcher.encode(piece.text)
            ]
            assert ids == list(expected)


@torch.inference_mode()
def test_tree_pass_equals_each_conversation_alone(processor: LlavaProcessor) -> None:
    torch.manual_seed(0)
    config = build_config(len(processor.tokenizer))
    config.text_config.num_hidden_layers = 2
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        weight.mul_(3.0 if weight.ndim == 2 else 1.0)
    batcher = Batcher(processor.tokenizer, SCENES, seed=0, tokens=1000)
    rng = random.Random(1)
    tree = draw_tree(rng, draw_world(rng, SCENES[:2]), 200)
    batch = batcher.lay_out([tree], [0, 1], 2)
    pixels = torch.from_numpy(np.stack([pixels_of(render(each)) for each in SCENES[:2]]))
    features = look(model.model.vision_tower, pixels)
    logits = TreeForward(model, compiled=False)(batch.rows, features)
    roots = sum(piece.task is not None for piece in tree.root)
    number = roots
    for branch in tree.branches:
        text = "".join(piece.text for piece in (*tree.root, *branch))
        inputs = processor(text=text, images=pictures(SCENES[:2]), return_tensors="pt")
        alone = model(**inputs).logits[0]
        at = len(inputs["input_ids"][0]) - sum(len(batcher.encode(piece.text)) for piece in branch)
        for piece in branch:
            size = len(batcher.encode(piece.text))
            if piece.task is not None:
                tree_logits = logits[batch.rows.answer_of == number]
                plain = alone[at - 1 : at + size - 1]
                assert (tree_logits - plain).abs().max() < 0.2 * plain.std()
                number += 1
            at += size
    assert number == len(batch.tasks)


def test_a_step_names_its_batch() -> None:
    path = checkpoint_path() / "tokenizer.json"
    one, other = (draw(Source(path, seed, 600, 40), step=3, num_images=2) for seed in (0, 0))
    assert one.tasks == other.tasks
    assert torch.equal(one.rows.ids, other.rows.ids)
    fed = batches(Source(path, 0, 600, 40), 3, lambda step: 2 if step == 3 else 1, processes=0)
    assert torch.equal(next(fed).rows.ids, one.rows.ids)
    assert next(fed).num_images == 1
    fed.close()


def test_the_curriculum_moves_on_accuracy() -> None:
    lesson = Curriculum()
    lesson.record(2, CORE * 200, [False] * (200 * len(CORE)))
    assert not lesson.advance(0.01)
    lesson.record(2, CORE * 300, [True] * (300 * len(CORE)))
    assert lesson.advance(0.01)
    assert lesson.max_images == STAGES[1]
    assert not lesson.advance(0.01)
    assert lesson.advance(0.99), "late in the run the clock moves it"


def test_the_rate_rises_stays_and_falls() -> None:
    assert trapezoid(0.0) < 0.1
    assert trapezoid(0.5) == 1.0
    assert trapezoid(1.0) == pytest.approx(0.02)
