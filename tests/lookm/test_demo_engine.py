"""The bundled model through the engine: transformers' own answers, from pictures, in float32."""

import functools
from typing import Any

import pytest
import torch

from lookm import CachePolicy, Engine, EngineConfig, Request, Sampling, demo
from lookm.demo.scenes import render, scene
from lookm.models.loading import load_model, load_processor
from tests.lookm.tiny import answers

QUESTIONS = ("Describe all images.", "What is in image 2?", "List the colours of all images.")


@functools.cache
def pictures(count: Any) -> Any:
    return tuple(render(scene("test", 0, number)) for number in range(count))


def messages(count: Any, question: Any) -> Any:
    parts = [{"type": "image"} for _ in range(count)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@functools.cache
def transformers_answer(count: Any, question: Any, num_tokens: Any) -> Any:
    processor, (model, _) = _transformers()
    text = processor.apply_chat_template(messages(count, question), add_generation_prompt=True)
    inputs = processor(text=text, images=list(pictures(count)) or None, return_tensors="pt")
    out = model.generate(
        **inputs, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return inputs["input_ids"][0].tolist(), out[0, inputs["input_ids"].shape[1] :].tolist()


@functools.cache
def _transformers() -> Any:
    path = str(demo.checkpoint_path())
    model = load_model(path, dtype=torch.float32, device="cpu")
    model[0].generation_config.eos_token_id = None
    return load_processor(path, model[1]), model


def engine() -> Any:
    return Engine.from_config(EngineConfig(dtype="float32", kv_cache_bytes=2**28))


def request(engine: Any, name: Any, count: Any, question: Any, policy: Any = None) -> Any:
    images = [engine.processor.image(image, f"{i}") for i, image in enumerate(pictures(count))]
    ids = engine.processor.prompt(messages(count, question), images)
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    return Request(name, ids, tuple(images), policy or CachePolicy(), sampling)


def test_zero_to_sixteen_images_in_one_batch_equal_generate() -> None:
    ours = engine()
    counts = [0, 1, 2, 3, 5, 8, 12, 16]
    policies = [None, CachePolicy("look-m", keep=0.2)]
    cases = [(n, QUESTIONS[n % 3], policy) for n in counts for policy in policies]
    requests = [request(ours, str(i), *case) for i, case in enumerate(cases)]
    got = answers(ours, requests, every=2)
    for i, (count, question, policy) in enumerate(cases):
        ids, expected = transformers_answer(count, question, 12)
        assert list(requests[i].prompt_ids) == ids
        assert len(got[str(i)]) == 12
        if policy is None:
            assert got[str(i)] == expected, (count, question)


@pytest.mark.parametrize("count", [2, 4])
def test_at_full_cache_the_bundled_model_names_what_it_sees(count: Any) -> None:
    from lookm.demo.scenes import Scene

    ours = engine()
    shapes = (("circle", "red"), ("star", "blue"), ("square", "green"), ("triangle", "orange"))
    images = [
        ours.processor.image(render(Scene(kind=kind, colour=colour)), f"{kind}-{colour}")
        for kind, colour in shapes[:count]
    ]
    for number, (kind, colour) in enumerate(shapes[:count], start=1):
        ids = ours.processor.prompt(messages(count, f"What is in image {number}?"), images)
        asked = Request(str(number), ids, tuple(images), sampling=Sampling(max_tokens=32))
        text = "".join(event.text for event in ours.generate([asked]))
        assert kind in text, text
        assert colour in text, text
