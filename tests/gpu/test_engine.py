"""The engine on CUDA: recorded steps, transformers' tokens, and how much memory a prefill takes."""

import dataclasses
from typing import Any

import pytest
import torch

from lookm import CachePolicy
from lookm.bench.gpu import fixture
from lookm.bench.gpu.fixture import SCALES, Lab
from lookm.bench.random_checkpoint import Shape
from tests.lookm.test_conversations import Conversation, prefilled, same
from tests.lookm.tiny import answers, generate, random_prompt, tiny_engine, tiny_llava

POLICIES = [CachePolicy(), CachePolicy("look-m", keep=0.2), CachePolicy("snapkv", keep=0.3)]
SHAPE = Shape(4, 1024, 2816, 8, 8, 512, 2, 64, image_side_px=336, max_context_tokens=16384)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_full_cache_in_float32_equals_generate(kv_heads: Any) -> None:
    prompts = [random_prompt(n, seed=n) for n in (0, 2, 5)]
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads).cuda(), attention="triton", graphs="on")
    got = answers(engine, [p.request(str(i)) for i, p in enumerate(prompts)], every=2)
    for i, prompt in enumerate(prompts):
        assert got[str(i)] == generate(tiny_llava(kv_heads=kv_heads), prompt, 12)


def test_recorded_steps_give_the_tokens_of_eager_ones() -> None:
    asked = [random_prompt(n % 4, seed=n).request(str(n), POLICIES[n % 3]) for n in range(9)]
    on, off = (
        answers(tiny_engine(tiny_llava().cuda(), attention="triton", graphs=graphs), asked, every=1)
        for graphs in ("on", "off")
    )
    assert on == off


def test_seeded_draws_are_made_on_the_device_and_do_not_depend_on_company() -> None:
    drawn = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 16}
    asked = [random_prompt(1, seed=n).request(str(n), seed=n, **drawn) for n in range(5)]
    engine = tiny_engine(tiny_llava().cuda(), attention="triton", graphs="on")
    together = answers(engine, asked)
    assert len({tuple(answer) for answer in together.values()}) == 5
    for request in asked[:2]:
        assert answers(engine, [request])[request.id] == together[request.id]


def lab(monkeypatch: pytest.MonkeyPatch, layers: Any) -> Any:
    monkeypatch.setitem(fixture.SHAPES, "gpu-test", dataclasses.replace(SHAPE, layers=layers))
    scale = dataclasses.replace(SCALES["7b"], shape="gpu-test", batches=(1,))
    return Lab.open(scale, "cuda", torch.float16)


def peak(lab: Any, *, long: Any) -> Any:
    """Bytes over what was held before, of a prefill that looks; the pages are held before."""
    engine = lab.make_engine(kv_cache_bytes=2**30)
    for _ in range(2):  # the first encodes the images
        (request,) = lab.requests(1, "look-m@0.2", long=long)
        engine.add(request)
        with lab.peak_bytes() as found:
            engine.step()
        engine.abort(request.id)
        engine.step()
    return found[0]


def test_a_prefill_holds_the_raw_keys_and_values_of_one_layer_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (peak(lab(monkeypatch, layers), long=False) for layers in (4, 16))
    assert many < few + 2**20, "twelve more layers, and not a layer's keys more"


def test_the_peak_of_a_prefill_grows_with_the_prompt_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = lab(monkeypatch, 4)
    short, long = peak(machine, long=False), peak(machine, long=True)
    tokens = [len(machine.prompt(long=each)[0]) for each in (False, True)]
    assert long / short < 1.15 * tokens[1] / tokens[0]


def test_images_encoded_together_are_the_images_encoded_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = lab(monkeypatch, 4)
    images = machine.prompt()[1]
    together = machine.adapter.vision.encode_images(images)
    for image, features in zip(images, together, strict=True):
        alone = machine.adapter.vision.encode_image(image)
        assert (features - alone).abs().max() < 2**-6 * alone.abs().max()


def test_the_plan_leaves_room_for_the_longest_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = lab(monkeypatch, 4)
    engine = machine.engine
    (request,) = machine.requests(1, "look-m@0.2", long=True)
    engine.add(request)
    engine.step()
    assert torch.cuda.mem_get_info()[0] > 0
    assert engine.plan.num_pages > 0


@pytest.mark.parametrize("method", ["full", "look-m", "look-m-plus", "snapkv", "h2o"])
def test_a_later_turn_keeps_and_answers_what_a_fresh_prompt_would(method: Any) -> None:
    policy = CachePolicy(method, keep=None if method == "full" else 0.3)
    model = tiny_llava(max_positions=1024).cuda()
    engine = tiny_engine(
        model, attention="triton", graphs="on", prompt_store_bytes=2**26, parking=False
    )
    talk = Conversation.begin(1, num_images=10)
    for turn in range(3):
        request = talk.prompt().request(str(turn), policy, max_tokens=2)
        token, rows, reused = prefilled(engine, request)
        fresh = dataclasses.replace(request, id=f"fresh {turn}", reuse="none")
        expected_token, expected, _ = prefilled(engine, fresh)
        assert token == expected_token
        assert same(rows, expected)
        assert bool(reused) == (turn > 0)
        talk.turn(num_images=turn)
