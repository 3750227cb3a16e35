"""The contract of a family: what transformers' `generate()` answers, the engine answers.

Every family runs mixed with itself, in chunks, after preemption and under every preset. Each
mechanism a family has of its own is then taken away once, to see that the comparison notices.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from docs.generate.families import RUN, counts, families_table
from lookm import CachePolicy, ImageInput, RequestError
from lookm.attention import masked
from lookm.engine import Engine
from lookm.errors import ModelError, PolicyError
from lookm.models.adapter import Adapter
from lookm.models.families import FAMILIES
from lookm.policy import PRESETS, nominal_rows, resolve
from tests.lookm.models.expected_answer import compressed_answer
from tests.lookm.models.toy_configs import TEXT, VISION
from tests.lookm.models.toys import TOYS, ToyPrompt, generated, prompt
from tests.lookm.tiny import IMAGE, answers, tiny_engine

NUM_TOKENS = 24
FULL = CachePolicy()
ONE_GO = [name for name, toy in TOYS.items() if toy.row.prefill != "causal"]
M_ROPE = [name for name, toy in TOYS.items() if toy.row.position_rows == 3]


def engine_of(toy: Any, **config: Any) -> Any:
    return tiny_engine(toy.model(), **{"kv_cache_bytes": 2**22, **config})


def with_row(monkeypatch: pytest.MonkeyPatch, engine: Engine, **facts: Any) -> Engine:
    """The engine with some facts of its family changed: for negative controls."""
    adapter = engine._adapter
    changed = dataclasses.replace(adapter.family, **facts)
    monkeypatch.setattr(adapter, "family", changed)
    monkeypatch.setattr(adapter.vision, "_family", changed)
    return engine


@functools.cache
def expected(name: str, num_images: int, seed: int, text_tokens: int = 5) -> list[int]:
    toy = TOYS[name]
    return generated(toy.model(), prompt(toy, num_images, seed, text_tokens=text_tokens), 24)


@pytest.mark.parametrize("name", TOYS)
def test_five_at_a_time_with_up_to_three_images_equal_generate(name: Any) -> None:
    toy = TOYS[name]
    prompts = [prompt(toy, num, seed=i) for i, num in enumerate((2, 0, 3, 1, 1))]
    got = answers(engine_of(toy), [p.request(str(i)) for i, p in enumerate(prompts)], every=1)
    for i, num in enumerate((2, 0, 3, 1, 1)):
        assert got[str(i)] == expected(name, num, i)
        assert len(set(got[str(i)])) > 2, "an answer that never changes proves nothing"


@pytest.mark.parametrize("name", TOYS)
def test_prompts_in_chunks_and_after_preemption_equal_generate(name: Any) -> None:
    """Steps of 13 tokens, and a pool that holds the longest prompt and little more."""
    toy = TOYS[name]
    cases = [(2, 0, 5), (0, 1, 70), (3, 2, 5), (1, 3, 5), (1, 4, 5)]
    prompts = [prompt(toy, num, seed, text_tokens=words) for num, seed, words in cases]
    longest = max(len(asked.ids) for asked in prompts)
    pool_bytes = (longest + 60) * engine_of(toy).plan.kv_bytes_per_token
    tight = engine_of(toy, max_step_tokens=13, page_tokens=4, kv_cache_bytes=pool_bytes)
    requests = [asked.request(str(i), max_tokens=24) for i, asked in enumerate(prompts)]
    got = answers(tight, requests, every=1)
    assert tight.stats().preemptions_total > 0
    for i, (num, seed, words) in enumerate(cases):
        assert got[str(i)] == expected(name, num, seed, words)


@pytest.mark.parametrize("spare", range(29, 90, 9))
def test_pools_of_any_size_give_the_same_answers(spare: Any) -> None:
    """A sequence that preempts itself must not take older ones, already in the batch, with it."""
    toy = TOYS["llava"]
    prompts = [prompt(toy, num, i) for i, num in enumerate((2, 0, 3, 1, 1))]
    per_token = engine_of(toy).plan.kv_bytes_per_token
    tight = engine_of(toy, page_tokens=4, kv_cache_bytes=(41 + spare) * per_token)
    requests = [asked.request(str(i), max_tokens=24) for i, asked in enumerate(prompts)]
    got = answers(tight, requests, every=1)
    for i, num in enumerate((2, 0, 3, 1, 1)):
        assert got[str(i)] == expected("llava", num, i)


@pytest.mark.parametrize("name", TOYS)
def test_every_preset_equals_a_plain_forward_over_its_compressed_cache(name: Any) -> None:
    toy = TOYS[name]
    asked, engine = prompt(toy, 3, seed=3), engine_of(toy)
    windows = engine._adapter.dimensions.windows_L
    for method in sorted(set(PRESETS) - {"full"}):
        policy = CachePolicy(method, keep=0.3)
        if name in ONE_GO and method in ("mean-h2o", "roco"):
            with pytest.raises(PolicyError, match="also see later ones: use 'h2o'"):
                engine.add(asked.request("a", policy))
            continue
        events = list(engine.generate([asked.request("a", policy)]))
        got = [event.token_id for event in events]
        assert got == compressed_answer(toy.model(), asked, policy, NUM_TOKENS), method
        assert got != expected(name, 3, 3), "a policy that changes nothing proves nothing"
        report = events[0].cache
        bound = nominal_rows(resolve(policy), torch.tensor(asked.ids) == IMAGE)
        kept_L = [min(len(asked.ids), window - 1) if window else bound for window in windows]
        assert abs(report.kept_tokens - np.mean(kept_L)) <= 0.5, method
        assert report.compressed
        engine.check()


@pytest.mark.parametrize("name", TOYS)
def test_other_pixels_give_other_tokens(name: Any) -> None:
    toy = TOYS[name]
    asked = prompt(toy, 2, seed=0)
    changed = {name: -a if name.endswith("pixel_values") else a for name, a in tensors(asked)}
    images = (asked.images[0], ImageInput("other", changed, asked.images[1].num_tokens))
    other = ToyPrompt(toy, asked.ids, images)
    got = answers(engine_of(toy), [asked.request("a"), other.request("b")])
    assert got["a"] == expected(name, 2, 0)
    assert got["b"] != got["a"]


def tensors(asked: Any) -> Any:
    return asked.images[1].tensors.items()


@pytest.mark.parametrize("name", TOYS)
def test_answers_at_other_positions_are_other_answers(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(TOYS[name])
    own = engine._adapter.embed_prompt

    def shifted(*args: Any, **kwargs: Any) -> Any:
        embedded = own(*args, **kwargs)
        return dataclasses.replace(embedded, next_pos=embedded.next_pos + 7)

    monkeypatch.setattr(engine._adapter, "embed_prompt", shifted)
    got = answers(engine, [prompt(TOYS[name], 3, seed=2).request("a")])
    assert got["a"] != expected(name, 3, 2)


@pytest.mark.parametrize("name", ONE_GO)
def test_without_its_mask_a_family_answers_otherwise(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_row(monkeypatch, engine_of(TOYS[name]), prefill="causal")
    got = answers(engine, [prompt(TOYS[name], 3, seed=2).request("a")])
    assert got["a"] != expected(name, 3, 2)


@pytest.mark.parametrize("part", ["extend", "decode"])
def test_without_its_window_a_family_answers_otherwise(
    part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = getattr(masked, part)
    monkeypatch.setattr(masked, part, lambda *a, window, **k: own(*a, window=10**6, **k))
    got = answers(
        engine_of(TOYS["gemma3"]), [prompt(TOYS["gemma3"], 0, 1, text_tokens=70).request("a")]
    )
    assert got["a"] != expected("gemma3", 0, 1, 70)


@pytest.mark.parametrize("name", M_ROPE)
def test_without_m_rope_a_family_answers_otherwise(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_row(monkeypatch, engine_of(TOYS[name]), grid_tensors=(), type_argument=None)
    got = answers(engine, [prompt(TOYS[name], 3, seed=2).request("a")])
    assert got["a"] != expected(name, 3, 2)


def test_without_deepstack_a_family_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_row(monkeypatch, engine_of(TOYS["qwen3_vl"]), deepstack=False)
    got = answers(engine, [prompt(TOYS["qwen3_vl"], 3, seed=2).request("a")])
    assert got["a"] != expected("qwen3_vl", 3, 2)


def test_an_image_alone_and_the_same_among_others_share_no_features() -> None:
    """One engine, one cache: the same image in both layouts, each answered as by `generate()`."""
    toy = TOYS["llava_onevision"]
    engine, asked = engine_of(toy, parking=False), prompt(toy, 2, seed=0)
    first, text = asked.images[0], (1, 5, 6)
    alone = ToyPrompt(toy, (*text, *[IMAGE] * first.num_tokens, 7), (first,))
    for i in range(2):
        for n, one in enumerate((alone, asked)):
            got = answers(engine, [one.request(f"{i}{n}")])
            assert got[f"{i}{n}"] == generated(toy.model(), one, NUM_TOKENS)
    stats = engine.stats()
    assert (stats.image_cache_queries_total, stats.image_cache_hits_total) == (6, 3)
    with pytest.raises(RequestError, match="image tokens, its images take"):
        engine.add(ToyPrompt(toy, alone.ids, asked.images).request("wrong"))


def test_logits_are_softcapped_as_the_model_does() -> None:
    toy = TOYS["paligemma"]
    model, hidden = toy.model(), torch.randn(2, 64) * 4
    adapter = Adapter(model, toy.row)
    raw = model.lm_head(hidden)
    assert torch.allclose(adapter.logits(hidden), 5 * torch.tanh(raw / 5))
    assert adapter.logits(hidden).abs().max() < 5 < raw.abs().max()


def test_policies_that_count_causal_queries_run_on_prompts_without_images() -> None:
    toy = TOYS["gemma3"]
    asked, policy = prompt(toy, 0, 1, text_tokens=40), CachePolicy("mean-h2o", keep=0.3)
    got = answers(engine_of(toy), [asked.request("a", policy)])
    assert got["a"] == compressed_answer(toy.model(), asked, policy, NUM_TOKENS)


def test_an_image_of_one_token_is_encoded_as_in_company() -> None:
    """transformers' Mistral3 fails on it alone, and any client can send one."""
    toy = TOYS["mistral3"]
    pixels = torch.randn(1, 3, 16, 16)
    tensors = {"pixel_values": pixels.numpy(), "image_sizes": np.array([[16, 16]])}
    features_FNE = Adapter(toy.model(), toy.row).vision.encode_image(ImageInput("d", tensors, 1))
    both = {"pixel_values": torch.cat([pixels, pixels * 2]), "image_sizes": torch.full((2, 2), 16)}
    first_1E, _ = toy.model().get_image_features(**both).pooler_output
    assert torch.allclose(features_FNE[0], first_1E, atol=1e-5)


def windowed_mistral() -> Any:
    toy = TOYS["mistral3"]
    config = toy.config()
    config.text_config.sliding_window = 8
    return dataclasses.replace(toy, config=lambda: config)


def test_a_model_of_windows_only_answers_at_full_cache_and_refuses_policies() -> None:
    toy = windowed_mistral()
    asked, full = prompt(toy, 3, seed=2), generated(toy.model(), prompt(toy, 3, seed=2), NUM_TOKENS)
    engine = engine_of(toy, max_step_tokens=20)
    assert answers(engine, [asked.request("a")])["a"] == full != expected("mistral3", 3, 2)
    with pytest.raises(PolicyError, match="every layer of this model sees a window") as refusal:
        engine.add(asked.request("b", CachePolicy("look-m", keep=0.2)))
    assert refusal.value.param == "kv_cache"


def unsupported(text: Any) -> Any:
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    return Adapter(model, FAMILIES["llava"])


def test_attention_that_cannot_be_computed_is_refused_at_start() -> None:
    with pytest.raises(ModelError, match="softcapped attention logits"):
        unsupported(transformers.Gemma2Config(**TEXT, head_dim=16))
    sinks = {**TEXT, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}
    with pytest.raises(ModelError, match="attention sinks"):
        unsupported(transformers.GptOssConfig(**sinks))


def test_every_row_was_served_beside_transformers_and_answered_alike() -> None:
    run = json.loads(RUN.read_text(encoding="utf-8"))
    compared = counts(run, "answers")
    assert set(compared) == set(FAMILIES)
    assert compared == counts(run, "equal")
    assert min(compared.values()) > 15


def test_every_row_has_a_toy_and_a_line_in_the_table() -> None:
    assert {toy.row.model_type for toy in TOYS.values()} == set(FAMILIES)
    table, note, made = families_table().split("\n\n")
    assert note.startswith("Layers with a sliding window")
    assert "`make families`, commit " in made
    assert len(table.splitlines()) == 2 + len(FAMILIES)
    for family in FAMILIES.values():
        assert f"| {family.title} | `{family.model_type}` |" in table
    assert np.all([line.count("|") == 6 for line in table.splitlines()])
