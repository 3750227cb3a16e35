"""One tiny random model of each supported family: the real classes at toy size, float32, seeded.

A `Toy` says how to build the model (`toy_configs`) and what one image is to it (`toy_images`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as hf

from lookm import CachePolicy, ImageInput, Request, Sampling
from lookm.models.families import FAMILIES
from lookm.models.image_layouts import AMONG, NUM_TOKENS, arranged
from tests.lookm.models import toy_configs as configs
from tests.lookm.models import toy_images as images
from tests.lookm.models.toy_images import Image
from tests.lookm.tiny import FULL, IMAGE

WORDS = (4, 90)


@dataclass(frozen=True)
class Toy:
    """A family, a tiny model of it, and images for it. `cat_dim`: where its images line up."""

    name: str
    config: Callable[[], Any]
    image: Callable[[np.random.Generator], Image]
    among: Callable[[Image], Image] | None = None
    cat_dim: int = 0
    needs_images: bool = False
    family: str = field(default="")

    @property
    def row(self) -> Any:
        return FAMILIES[self.family or self.name]

    def model(self, seed: int = 0) -> Any:
        model = filled(self.config(), seed)
        model.generation_config.eos_token_id = None  # as `ignore_eos` does
        model.generation_config.pad_token_id = 0
        return model


def filled(config: Any, seed: int = 0) -> Any:
    """The model of a config with random weights, of which none is zero throughout."""
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():  # Gemma3's projector starts at zero
            torch.nn.init.normal_(weight, std=0.3)
    return model


@dataclass(frozen=True)
class ToyPrompt:
    """Ids with image placeholders expanded, and the images."""

    toy: Toy
    ids: tuple[int, ...]
    images: tuple[ImageInput, ...]

    def request(self, id: str, policy: CachePolicy = FULL, **sampling: Any) -> Request:
        sampling = {"max_tokens": 24, "ignore_eos": True, **sampling}
        return Request(id, self.ids, self.images, policy, Sampling(**sampling))

    def inputs(self) -> dict[str, Any]:
        """What transformers' own model is called with."""
        ids = torch.tensor([self.ids])
        inputs: dict[str, Any] = {"input_ids": ids}
        images = arranged(self.images, self.toy.row)
        for name in self.toy.row.image_tensors:
            arrays = [image.tensors[name] for image in images if name in image.tensors]
            if arrays:
                inputs[name] = _side_by_side([torch.from_numpy(a) for a in arrays], self.toy)
        if "batch_num_images" in inputs:
            inputs["batch_num_images"] = torch.tensor([len(images)])
        if self.toy.row.type_argument:
            kinds = (ids == IMAGE).long() * self.toy.row.image_type
            inputs[self.toy.row.type_argument] = kinds
        return inputs

    @property
    def is_image(self) -> torch.Tensor:
        return torch.tensor(self.ids) == IMAGE

    @property
    def position_rows(self) -> int:
        return int(self.toy.row.position_rows)

    @property
    def next_pos(self) -> int:
        """Where the first generated token stands, counted by hand.

        M-RoPE: an image of r x c merged patches takes max(r, c) places. PaliGemma counts from 1.
        """
        if self.toy.row.position_rows == 1:
            return len(self.ids) + (self.toy.row.prefill == "prefix")
        grids = [image.tensors["image_grid_thw"][0] for image in self.images]
        sides = [int(max(rows, columns)) // 2 for _, rows, columns in grids]
        return len(self.ids) - self.ids.count(IMAGE) + sum(sides)


def prompt(toy: Toy, num_images: int, seed: int, *, text_tokens: int = 5) -> ToyPrompt:
    """Text, image, text, image, ... with one to four text tokens between."""
    rng = np.random.default_rng(seed)
    ids: list[int] = [1]
    images = []
    for i in range(num_images):
        ids += rng.integers(*WORDS, rng.integers(1, 5)).tolist()
        alone = toy.image(rng)
        tensors, shown = alone.tensors, alone
        if toy.among is not None:
            among = toy.among(alone)
            shown = among if num_images > 1 else alone
            tensors = {**tensors, **{AMONG + name: a for name, a in among.tensors.items()}}
            tensors[NUM_TOKENS] = np.array(among.ids.count(IMAGE))
        ids += shown.ids
        images.append(ImageInput(f"{toy.name}-{seed}-{i}", tensors, alone.ids.count(IMAGE)))
    ids += rng.integers(*WORDS, text_tokens).tolist()
    return ToyPrompt(toy, tuple(int(i) for i in ids), tuple(images))


def generated(model: Any, prompt: ToyPrompt, num_tokens: int) -> list[int]:
    """transformers' own greedy answer. The model must not be in an engine."""
    out = model.generate(
        **prompt.inputs(),
        attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    return out[0, len(prompt.ids) :].tolist()


def _side_by_side(tensors: list[torch.Tensor], toy: Toy) -> torch.Tensor:
    """One batch of images of several sizes, padded with zeros as processors do."""
    dim = toy.cat_dim if tensors[0].dim() > toy.cat_dim + 1 else 0
    shape = torch.tensor([tensor.shape for tensor in tensors]).amax(dim=0)
    padded = []
    for tensor in tensors:
        widths = [
            (0, 0 if d == dim else int(shape[d]) - size) for d, size in enumerate(tensor.shape)
        ]
        flat = [width for pair in reversed(widths) for width in pair]
        padded.append(torch.nn.functional.pad(tensor, flat))
    return torch.cat(padded, dim=dim)


TOYS = {
    toy.name: toy
    for toy in (
        Toy(
            "llava", lambda: configs.llava(hf.CLIPVisionConfig(**configs.VISION)), images.square(9)
        ),
        Toy(
            "pixtral",
            lambda: configs.llava(configs.pixtral_vision(), vision_feature_select_strategy="full"),
            images.sized(1),
            family="llava",
        ),
        Toy(
            "llava_next",
            lambda: configs.anyres(
                hf.LlavaNextConfig,
                hf.CLIPVisionConfig(**configs.VISION),
                hf.LlamaConfig(**configs.TEXT),
            ),
            images.anyres,
        ),
        Toy(
            "llava_onevision",
            lambda: configs.anyres(
                hf.LlavaOnevisionConfig,
                hf.SiglipVisionConfig(**configs.VISION),
                hf.Qwen2Config(**configs.TEXT),
            ),
            images.onevision,
            among=images.onevision_among,
        ),
        Toy("qwen2_vl", configs.qwen2, images.grid),
        Toy("qwen2_5_vl", configs.qwen25, images.grid),
        Toy("qwen3_vl", configs.qwen3, images.grid),
        Toy("internvl", configs.internvl, images.tiles),
        Toy("idefics3", lambda: configs.idefics(hf.Idefics3Config), images.split, cat_dim=1),
        Toy("smolvlm", lambda: configs.idefics(hf.SmolVLMConfig), images.split, cat_dim=1),
        Toy("gemma3", configs.gemma3, images.square(9, marked=True)),
        Toy("mistral3", configs.mistral3, images.sized(2)),
        Toy("paligemma", configs.paligemma, images.square(9)),
    )
}
