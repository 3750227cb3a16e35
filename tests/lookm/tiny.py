"""Tiny random models: the real classes at toy size, seeded, in float32."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lookm import CachePolicy, ImageInput, Request, Sampling
from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.models.adapter import Adapter
from lookm.models.families import family_of

IMAGE, VOCABULARY, IMAGE_TOKENS = 3, 96, 9
FULL = CachePolicy()


def tiny_llava(*, kv_heads: int = 2, seed: int = 0, max_positions: int = 512) -> Any:
    """A LLaVA of 3 layers and 4 heads; images of 24 x 24 pixels take 9 tokens."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=max_positions,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
    )
    return LlavaForConditionalGeneration(config).eval()


class WordProcessor:
    """Stands in for `Processor` where a test needs ids back as text: one word per id."""

    name = "tiny"
    tokenizer_json = None

    def decode(self, ids: Any) -> str:
        return "".join(f" w{i}" for i in ids)


@dataclass(frozen=True)
class Prompt:
    """Ids with image placeholders expanded, and the pixels of each image."""

    ids: tuple[int, ...]
    pixels: tuple[np.ndarray, ...]

    def request(self, id: str, policy: CachePolicy = FULL, **sampling: Any) -> Request:
        images = tuple(
            ImageInput(str(hash(p.tobytes())), {"pixel_values": p[None]}, IMAGE_TOKENS)
            for p in self.pixels
        )
        sampling = {"max_tokens": 12, "ignore_eos": True, **sampling}
        return Request(id, self.ids, images, policy, Sampling(**sampling))


def random_prompt(num_images: int, seed: int, *, text_tokens: int = 5) -> Prompt:
    """Text, image, text, image, ... with a few text tokens between."""
    rng = np.random.default_rng(seed)
    ids: list[int] = [1]
    for _ in range(num_images):
        ids += rng.integers(4, VOCABULARY, rng.integers(0, 4)).tolist()
        ids += [IMAGE] * IMAGE_TOKENS
    ids += rng.integers(4, VOCABULARY, text_tokens).tolist()
    pixels = tuple(rng.standard_normal((3, 24, 24), dtype=np.float32) for _ in range(num_images))
    return Prompt(tuple(int(i) for i in ids), pixels)


def tiny_engine(model: Any = None, **config: Any) -> Engine:
    """An engine over a tiny model with a pool of 1 MiB unless the config says otherwise."""
    defaults = {"kv_cache_bytes": 2**20, "max_context_tokens": 512, "attention": "reference"}
    settings = EngineConfig(**{**defaults, **config})
    model = tiny_llava() if model is None else model
    adapter = Adapter(model, family_of(model.config))
    processor: Any = WordProcessor()
    return Engine(adapter, processor, settings, model_path="tiny")


def generate(model: Any, prompt: Prompt, num_tokens: int) -> list[int]:
    """What transformers' own greedy `generate` answers. The model must not be in an engine."""
    images = {"pixel_values": torch.from_numpy(np.stack(prompt.pixels))} if prompt.pixels else {}
    model.generation_config.eos_token_id = None  # as `ignore_eos` does
    out = model.generate(
        input_ids=torch.tensor([prompt.ids]),
        attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
        **images,
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt.ids) :].tolist()


def answers(engine: Engine, requests: list[Request], *, every: int = 0) -> dict[str, list[int]]:
    """Run requests to the end, one more arriving each `every` steps; invariants checked."""
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    ended: set[str] = set()
    waiting, step = list(requests), 0
    while waiting or engine.has_work:
        while waiting and (every == 0 or step % every == 0):
            engine.add(waiting.pop(0))
            if every:
                break
        step += 1
        for event in engine.step():
            assert event.request_id not in ended, "an event after the last one"
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
            if event.finish:
                ended.add(event.request_id)
        engine.check()
    assert ended == set(tokens), "a request without a last event"
    assert engine.stats().used_bytes == 0
    return tokens
