"""Conversations of several turns: what later questions, about other pictures, are still answered.

A talk is a handful of drawn pictures and a question about another of them in each turn; what the
model said before is in the prompt. Each policy is asked under every way to reuse earlier turns:

    none    everything is computed again, and what is kept is chosen by the new question
    exact   the same answer, for the price of what is new
    kept    goes on from what the first question kept

    {"kind": "turns", ..., "turns", "images", "talks", "seed",
     "rows": [{"policy", "reuse", "turns": [{"right", "kept_share", "known_share", "ttft_s"}]}]}

One talk at a time, so that times are those of a user who is alone. Knows the engine and the demo
model's questions.
"""

import hashlib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lookm.demo.scenes import draw_scene, render
from lookm.demo.tasks import BY_NAME
from lookm.demo.words import ORDINALS, World
from lookm.engine import Engine
from lookm.eval.scores import wilson
from lookm.policy import parse
from lookm.types import ImageInput, Request, Reuse, Sampling

TASKS = ("what", "colour", "shape", "where", "background")
REUSES: tuple[Reuse, ...] = ("none", "exact", "kept")
MAX_TOKENS = 60


@dataclass(frozen=True, slots=True)
class Talk:
    """Pictures, and a question with its true answer for each turn, about another picture each."""

    pictures: list[Image.Image]
    questions: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: whether it was right, shares of bytes and tokens, the time to its first token."""

    right: bool
    kept_share: float
    known_share: float
    ttft_s: float


def draw_talk(num_images: int, num_turns: int, seed: int, number: int) -> Talk:
    """The `number`-th talk of a seed. Turns ask about different pictures, in random order."""
    assert num_turns <= num_images
    rng = random.Random(f"llava-demo talk {seed} {num_images} {number}")
    while True:
        scenes = tuple(draw_scene(rng) for _ in range(num_images))
        if all(len(scene.shapes) == 1 for scene in scenes):
            break
    asked = rng.sample(range(num_images), num_turns)
    world = World(scenes, ())
    questions = [_about(rng, world, index) for index in asked]
    return Talk([render(scene) for scene in scenes], questions)


def _about(rng: random.Random, world: World, index: int) -> tuple[str, str]:
    """A question about picture `index` and none other."""
    names = {f"image {index + 1} ", f"the {ORDINALS[index]} image "}
    while True:
        answered = BY_NAME[rng.choice(TASKS)].ask(rng, world)
        if answered is None:
            continue
        question, answer = answered
        if any(name in f"{answer.lower().rstrip('.')} " for name in names):
            return question, answer


def ask(engine: Engine, talk: Talk, policy: str, reuse: Reuse, salt: str) -> list[Turn]:
    """Hold the conversation under a policy. Nothing is shared between different salts."""
    processor = engine.processor
    images = tuple(
        processor.image(picture, hashlib.sha256(picture.tobytes()).hexdigest())
        for picture in talk.pictures
    )
    messages: list[dict[str, Any]] = []
    turns = []
    for number, (question, truth) in enumerate(talk.questions):
        shown = [] if number else [{"type": "image"} for _ in images]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        text, turn = _answer(engine, messages, images, policy, reuse, salt, truth)
        turns.append(turn)
        messages.append({"role": "assistant", "content": text})
    return turns


def _answer(
    engine: Engine,
    messages: Sequence[dict[str, Any]],
    images: tuple[ImageInput, ...],
    policy: str,
    reuse: Reuse,
    salt: str,
    truth: str,
) -> tuple[str, Turn]:
    started_s = time.perf_counter()
    ids = engine.processor.prompt(messages, images)
    sampling = Sampling(max_tokens=MAX_TOKENS)
    request = Request("turn", ids, images, parse(policy), sampling, reuse=reuse, salt=salt)
    text, ttft_s, report = "", 0.0, None
    for event in engine.generate([request]):
        ttft_s = ttft_s or time.perf_counter() - started_s
        text += event.text
        report = event.cache or report
    assert report is not None, "every answer says what was kept"
    return text, Turn(
        right=text.strip() == truth,
        kept_share=report.bytes / report.full_bytes,
        known_share=report.cached_tokens / report.prompt_tokens,
        ttft_s=ttft_s,
    )


def study(
    engine: Engine, policies: Sequence[str], talks: Sequence[Talk]
) -> Iterator[tuple[str, Reuse, list[list[Turn]]]]:
    """Every policy under every way to reuse; `full` keeps everything, so `kept` is `exact`."""
    for policy in policies:
        ask(engine, talks[0], policy, "exact", f"{policy} first")  # what is compiled once
        for reuse in REUSES:
            if policy == "full" and reuse == "kept":
                continue
            yield (
                policy,
                reuse,
                [
                    ask(engine, talk, policy, reuse, f"{policy} {reuse} {number}")
                    for number, talk in enumerate(talks)
                ],
            )


def row(policy: str, reuse: Reuse, talks: Sequence[Sequence[Turn]]) -> dict[str, Any]:
    """A line of the report: means by turn, and a 95 % interval of what was right."""
    by_turn = list(zip(*talks, strict=True))
    return {
        "policy": policy,
        "reuse": reuse,
        "turns": [
            {
                "right": statistics.fmean(turn.right for turn in turns),
                "interval": wilson(sum(turn.right for turn in turns), len(turns)),
                "kept_share": statistics.fmean(turn.kept_share for turn in turns),
                "known_share": statistics.fmean(turn.known_share for turn in turns),
                "ttft_s": statistics.median(turn.ttft_s for turn in turns),
            }
            for turns in by_turn
        ],
    }
