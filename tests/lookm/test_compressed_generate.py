"""Presets on a plain transformers model: the same answers as the engine, nothing left behind."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lookm import CachePolicy, RequestError, compressing
from lookm.policy import PRESETS, resolve
from tests.lookm.models.toys import TOYS, generated, prompt
from tests.lookm.tiny import IMAGE, answers, generate, random_prompt, tiny_engine, tiny_llava


def arguments(prompt: Any) -> Any:
    images = {"pixel_values": torch.from_numpy(np.stack(prompt.pixels))} if prompt.pixels else {}
    ids = torch.tensor([prompt.ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}


def plain_answer(model: Any, prompt: Any, policy: Any, num_tokens: int = 12) -> Any:
    model.generation_config.eos_token_id = None
    is_image = torch.tensor(prompt.ids) == IMAGE
    with compressing(model, policy, is_image) as cache:
        out = model.generate(
            **arguments(prompt),
            past_key_values=cache,
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return out[0, len(prompt.ids) :].tolist(), cache


@pytest.mark.parametrize("method", sorted(PRESETS))
@pytest.mark.parametrize("num_images", [0, 4])
def test_generate_over_the_cache_equals_the_engine(method: Any, num_images: Any) -> None:
    prompt = random_prompt(num_images, seed=num_images + 30)
    policy = CachePolicy(method) if method == "full" else CachePolicy(method, keep=0.3)
    got, cache = plain_answer(tiny_llava(), prompt, policy)
    assert got == answers(tiny_engine(), [prompt.request("a", policy)])["a"]
    whole = method == "full" or (num_images == 0 and resolve(policy).preset.modality_aware)
    assert len(cache.kept_tokens) == 3
    assert all((kept == len(prompt.ids)) == whole for kept in cache.kept_tokens)


def test_the_model_is_as_it_was_afterwards() -> None:
    model, prompt = tiny_llava(), random_prompt(2, seed=1)
    before = generate(model, prompt, 8)
    plain_answer(model, prompt, "h2o@0.3")
    assert generate(model, prompt, 8) == before


def test_what_it_cannot_do_is_refused() -> None:
    model, prompt = tiny_llava(), random_prompt(1, seed=1)
    is_image = torch.tensor(prompt.ids) == IMAGE
    few = torch.tensor([[5, 6, 7]])

    def forward(mask: Any, *calls: Any) -> None:
        with compressing(model, "look-m", mask) as cache:
            for call in calls:
                model(**{"past_key_values": cache, **call})

    with pytest.raises(RequestError, match="is_image describes"):
        forward(is_image[:-1], arguments(prompt))
    with pytest.raises(RequestError, match="one prompt at a time"):
        forward(is_image, {"input_ids": few.repeat(2, 1)})
    with pytest.raises(RequestError, match="looked at once"):
        forward(is_image, arguments(prompt), {"input_ids": few})
    with pytest.raises(RequestError, match="pass the cache"):
        forward(is_image, {"input_ids": few, "past_key_values": None, "use_cache": False})


@pytest.mark.parametrize("name", sorted(TOYS))
def test_each_family_answers_as_without_it_or_is_refused(name: Any) -> None:
    toy = TOYS[name]
    model, asked = toy.model(), prompt(toy, 2, seed=7)
    is_image = torch.tensor(asked.ids) == IMAGE
    if not toy.row.causal(has_images=True):
        with pytest.raises(RequestError, match="see later ones"):
            compressing(model, "full", is_image).__enter__()
        return
    with compressing(model, "full", is_image) as cache:
        out = model.generate(
            **asked.inputs(), past_key_values=cache, max_new_tokens=8, do_sample=False
        )
    assert out[0, len(asked.ids) :].tolist() == generated(model, asked, 8)


def test_a_sliding_window_that_does_not_hold_all_tokens_is_refused() -> None:
    toy = TOYS["gemma3"]
    model, ids = toy.model(), torch.tensor([[5, 6, 7, 8, 9, 10]])
    window = model.config.get_text_config().sliding_window
    model.generation_config.eos_token_id = None
    is_image = torch.zeros(ids.shape[1], dtype=torch.bool)
    call = {"do_sample": False, "pad_token_id": 0}

    def answer(num_tokens: Any) -> None:
        with compressing(model, "h2o@0.5", is_image) as cache:
            model.generate(ids, past_key_values=cache, max_new_tokens=num_tokens, **call)

    answer(window - ids.shape[1] + 1)
    with pytest.raises(RequestError, match=f"the last {window} tokens only"):
        answer(window - ids.shape[1] + 2)


SIZES = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 100, "max_position_embeddings": 64, "n_positions": 64,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": None, "d_kv": 8, "d_ff": 48,
}  # fmt: skip


def text_model(kind: Any) -> Any:
    """A tiny random model of text alone, as transformers builds it."""
    known = AutoConfig.for_model(kind)
    sizes = {name: size for name, size in SIZES.items() if hasattr(known, name)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    model.generation_config.eos_token_id = None
    return model


def text_answer(model: Any, policy: Any, **inputs: Any) -> Any:
    torch.manual_seed(1)
    ids = torch.randint(2, 100, (1, 20))
    call = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **inputs}
    if policy is None:
        return model.generate(ids, **call)[0].tolist()
    with compressing(model, policy, torch.zeros(20, dtype=torch.bool)) as cache:
        return model.generate(ids, past_key_values=cache, **call)[0].tolist(), cache.kept_tokens


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_neox", "opt", "phi", "qwen3", "mixtral", "olmo2", "smollm3"]
)
def test_a_model_of_text_alone_answers_as_without_it(kind: Any) -> None:
    model = text_model(kind)
    plain = text_answer(model, None)
    assert text_answer(model, "full") == (plain, [20, 20])
    assert text_answer(model, "h2o@0.5")[1] == [10, 10]
    assert text_answer(model, None) == plain


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bloom", "cannot be exchanged"),
        ("mamba", "linear_attention"),
        ("diffllama", "other values"),
        ("gpt_oss", "sinks"),
        ("jetmoe", "pass the cache"),
    ],
)
def test_a_model_that_cannot_be_looked_at_is_refused_and_left_as_it_was(
    kind: Any, said: Any
) -> None:
    model = text_model(kind)
    plain = text_answer(model, None)
    with pytest.raises(RequestError, match=said):
        text_answer(model, "full")
    assert text_answer(model, None) == plain


def test_a_padded_prompt_is_refused() -> None:
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(RequestError, match="without padding"):
        text_answer(text_model("llama"), "full", attention_mask=mask)
