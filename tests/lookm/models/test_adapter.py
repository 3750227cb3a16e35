"""The adapter: transformers' own numbers through our five calls, and clear refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from lookm import demo
from lookm.errors import ModelError, RequestError
from lookm.models.adapter import Adapter
from lookm.models.families import FAMILIES, family_of
from lookm.models.features import FeatureCache
from lookm.models.image_layouts import PLACEHOLDER, alike
from lookm.models.loading import load_config, resolve_path
from lookm.types import ImageInput
from tests.lookm.models.toys import TOYS
from tests.lookm.models.toys import prompt as toy_prompt
from tests.lookm.tiny import IMAGE, IMAGE_TOKENS, random_prompt, tiny_llava


def inputs(prompt: Any) -> Any:
    return prompt.request("x").images


def adapter(seed: int = 0) -> Any:
    model = tiny_llava(seed=seed)
    return Adapter(model, family_of(model.config))


def test_images_encoded_one_by_one_equal_the_models_own_merge() -> None:
    prompt, model = random_prompt(3, seed=1), tiny_llava()
    captured = {}

    def keep(_module: Any, _args: Any, kwargs: Any) -> None:
        captured.update(kwargs)

    model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(
            input_ids=torch.tensor([prompt.ids]),
            pixel_values=torch.from_numpy(np.stack(prompt.pixels)),
        )
    ours = adapter()
    features = [ours.vision.encode_image(image) for image in inputs(prompt)]
    embedded = ours.embed_prompt(prompt.ids, inputs(prompt), features)
    assert torch.allclose(embedded.embeds_TE, captured["inputs_embeds"][0], atol=1e-6)
    assert embedded.is_image_T.tolist() == [i == IMAGE for i in prompt.ids]
    assert embedded.pos_RT.tolist() == [list(range(len(prompt.ids)))]
    assert embedded.next_pos == len(prompt.ids)


def test_embedding_a_prompt_leaves_no_hook_behind() -> None:
    ours = adapter()
    ours.embed_prompt((1, 5, 6))
    assert not ours._language_model._forward_pre_hooks


def test_a_plain_call_of_an_engines_model_is_refused() -> None:
    model = tiny_llava()
    Adapter(model, family_of(model.config))
    with pytest.raises(AssertionError, match="belongs to an engine"):
        model(input_ids=torch.tensor([[1, 5]]))


def test_an_image_whose_features_do_not_fill_its_tokens_is_refused() -> None:
    pixels = np.zeros((1, 3, 24, 24), dtype=np.float32)
    with pytest.raises(RequestError, match="9 features for 4 tokens"):
        adapter().vision.encode_image(ImageInput("d", {"pixel_values": pixels}, 4))


def test_a_family_without_a_row_is_refused_with_the_list() -> None:
    with pytest.raises(ModelError, match=r"'llama' is not supported; supported: .*llava"):
        family_of(LlamaConfig())
    assert family_of(tiny_llava().config) is FAMILIES["llava"]


@pytest.mark.parametrize("name", ["/no/such/dir", "./nowhere", "nowhere", "a/b/c", "~/none"])
def test_a_path_that_does_not_exist_is_refused_without_asking_a_hub(name: Any) -> None:
    with pytest.raises(ModelError, match="no model directory"):
        resolve_path(name)


def test_a_hub_name_passes_and_the_demo_name_is_the_bundled_checkpoint() -> None:
    assert resolve_path("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert resolve_path(demo.NAME) == str(demo.checkpoint_path())


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        load_config(str(tmp_path))


def image(name: Any, tokens: int = 2) -> Any:
    return ImageInput(name, {}, tokens)


def test_features_are_made_once_per_content_and_the_oldest_leave_first() -> None:
    made = []

    def encode(images: Any) -> Any:
        made.extend(image.digest for image in images)
        return [torch.zeros(IMAGE_TOKENS, 4) for _ in images]

    size = IMAGE_TOKENS * 4 * 4
    cache = FeatureCache(encode, max_bytes=2 * size)
    for name in "aabacab":
        cache.get([image(name)])
    assert made == ["a", "b", "c", "b"]
    assert (cache.queries, cache.hits) == (7, 3)
    assert cache.used_bytes == 2 * size


def test_a_feature_cache_of_no_bytes_holds_nothing() -> None:
    cache = FeatureCache(lambda images: [torch.zeros(2, 2)] * len(images), max_bytes=0)
    cache.get([image("a")])
    cache.get([image("a")])
    assert (cache.hits, cache.used_bytes) == (0, 0)


def test_images_of_one_prompt_are_asked_for_together_and_each_once() -> None:
    asked = []

    def encode(images: Any) -> Any:
        asked.append([image.digest for image in images])
        return [torch.full((2, 2), float(len(image.digest))) for image in images]

    cache = FeatureCache(encode, max_bytes=1000)
    cache.get([image("bb")])
    features = cache.get([image("a"), image("bb"), image("ccc"), image("a")])
    assert asked == [["bb"], ["a", "ccc"]]
    assert [int(each[0, 0]) for each in features] == [1, 2, 3, 1]


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma"])
def test_images_encoded_together_are_the_images_encoded_alone(name: Any) -> None:
    """In float32, up to rounding: which is why a CPU, where tests compare tokens, does not."""
    toy = TOYS[name]
    ours, images = Adapter(toy.model(), toy.row), toy_prompt(toy, 3, seed=1).images
    assert len(list(alike(images, 16))) == 1
    together = ours.vision.encode_together(images)
    for image, features in zip(images, together, strict=True):
        assert torch.allclose(features, ours.vision.encode_image(image), atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("name", ["pixtral", "qwen2_vl", "llava_next", "idefics3"])
def test_images_whose_tensors_say_more_than_pixels_stay_alone(name: Any) -> None:
    images = toy_prompt(TOYS[name], 3, seed=1).images
    assert [len(group) for group in alike(images, 16)] == [1, 1, 1]


def test_groups_are_of_one_size_and_bounded() -> None:
    pixels = [np.zeros((1, 3, side, side), np.float32) for side in (8, 8, 16, 8)]
    text = np.frombuffer(
        b"<image>", dtype=np.uint8
    )  # each processor's image says what it is called
    images = [
        ImageInput(str(i), {"pixel_values": each, PLACEHOLDER: text}, 4)
        for i, each in enumerate(pixels)
    ]
    groups = [[image.digest for image in group] for group in alike([*images, images[0]], 2)]
    assert groups == [["0", "1"], ["3"], ["2"]]
