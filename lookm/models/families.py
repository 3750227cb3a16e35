"""Which model families are supported, and the facts in which they differ: one row each.

A row is added by: naming the config's `model_type`, saying which processor outputs belong to one
image, and running the contract test over it (`tests/lookm/test_families.py`). What the code does
with these facts is generic (`adapter`, `processor`); it never asks for a family's name.

Not here because the model itself tells (`adapter` asks it once, at start): sliding-window layers,
head counts, and attention this engine cannot compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from lookm.errors import ModelError
from lookm.models import grids
from lookm.models.detail import Ladder, anyres, bounded, fixed, views

Prefill = Literal["causal", "image blocks", "prefix"]


@dataclass(frozen=True, slots=True)
class Family:
    """What is not common to all of transformers' image-and-text models.

    Images
    - `image_tensors`: outputs of the image processor that `get_image_features` takes, where there.
    - `grid_tensors`: those of them that placing an image in a prompt takes as well.
    - `two_layouts`: an image among others is laid out otherwise than one alone, so features,
      tokens and cache keys of the two differ.
    - `stacked_features`: features are merged as one tensor, not as a list of one per image.
    - `deepstack`: the vision tower also gives features for the first layers of the text model.
    - `layout`: which part of the picture each of its tokens stands for. `ladder`: in which ways,
      of more and of fewer tokens, it can be shown.

    Text model
    - `text_model`: its attribute. `position_rows`: RoPE rows (3 for M-RoPE).
    - `softcaps_logits`: its config's `final_logit_softcapping` is applied.
    - `prefill`: who sees whom in a prompt. "causal"; "image blocks": tokens of one image see each
      other; "prefix": every prompt token sees every other.
    - `type_argument`: the argument that tells image tokens (`image_type`) from the rest (0).

    Processor
    - `packages`: what its processor needs beyond the ones this project depends on.
    - `template`: the chat template, where checkpoints have none.
    """

    model_type: str
    title: str
    layout: grids.Layout
    ladder: Ladder
    image_tensors: tuple[str, ...] = ("pixel_values",)
    grid_tensors: tuple[str, ...] = ()
    two_layouts: bool = False
    stacked_features: bool = False
    deepstack: bool = False
    text_model: str = "language_model"
    position_rows: int = 1
    softcaps_logits: bool = False
    prefill: Prefill = "causal"
    type_argument: str | None = None
    image_type: int = 1
    packages: tuple[str, ...] = ()
    template: str | None = None

    @property
    def specials(self) -> list[str]:
        """What a user may want to know of the family, in words."""
        facts = [
            (self.position_rows > 1, "M-RoPE"),
            (self.deepstack, "deepstack features in the first text layers"),
            (self.two_layouts, "an image alone and an image among others are laid out differently"),
            (
                self.prefill == "image blocks",
                "tokens of an image see each other: prompts with images are prefilled in one go",
            ),
            (
                self.prefill == "prefix",
                "the whole prompt sees itself: prefilled in one go, one turn of text after the "
                "images",
            ),
            (
                self.prefill != "causal",
                "policies whose score counts causal queries (`mean-h2o`, `roco`) are refused there",
            ),
            (self.softcaps_logits, "softcapped logits"),
        ]
        return [text for holds, text in facts if holds]

    def causal(self, *, has_images: bool) -> bool:
        """Whether the tokens of such a prompt see only those before them."""
        return self.prefill == "causal" or (self.prefill == "image blocks" and not has_images)

    def num_together(self, num_tokens: int, images_end: int) -> int:
        """How many tokens of a prompt, from the first on, see each other in both directions.

        `images_end` tokens end with the last image.
        """
        if self.causal(has_images=images_end > 0):
            return 0
        return images_end if self.prefill == "image blocks" else num_tokens


# PaliGemma was trained on images, then <bos>, then one line of text; it knows no turns.
_PREFIX_TEMPLATE = (
    "{%- for message in messages if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}"
    "{%- endfor -%}{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endfor -%}{{ '\n' }}"
)

_SIZED = ("pixel_values", "image_sizes")
_GRIDS = ("pixel_values", "image_grid_thw")
_MASKED = ("pixel_values", "pixel_attention_mask")
_VIDEO = ("torchvision",)  # their processors insist on a video processor, which needs it

_ROWS = (
    Family(
        "llava",
        "LLaVA 1.5, Pixtral and others in LLaVA's form",
        grids.cropped,
        bounded.edge_or_fixed,
        image_tensors=_SIZED,
    ),
    Family(
        "llava_next", "LLaVA-NeXT (LLaVA 1.6)", grids.anyres, anyres.pinpoints, image_tensors=_SIZED
    ),
    Family(
        "llava_onevision",
        "LLaVA-OneVision",
        grids.onevision,
        anyres.onevision,
        image_tensors=(*_SIZED, "batch_num_images"),
        two_layouts=True,
        packages=_VIDEO,
    ),
    *(
        Family(
            model_type,
            title,
            grids.merged,
            bounded.area,
            image_tensors=_GRIDS,
            grid_tensors=("image_grid_thw",),
            deepstack=deepstack,
            position_rows=3,
            type_argument="mm_token_type_ids",
            packages=_VIDEO,
        )
        for model_type, title, deepstack in (
            ("qwen2_vl", "Qwen2-VL", False),
            ("qwen2_5_vl", "Qwen2.5-VL", False),
            ("qwen3_vl", "Qwen3-VL", True),
        )
    ),
    Family(
        "internvl", "InternVL", grids.tiled, views.tiles, stacked_features=True, packages=_VIDEO
    ),
    Family(
        "idefics3",
        "Idefics3",
        grids.named,
        views.splits,
        image_tensors=_MASKED,
        text_model="text_model",
    ),
    Family(
        "smolvlm",
        "SmolVLM",
        grids.named,
        views.splits,
        image_tensors=_MASKED,
        text_model="text_model",
        packages=(*_VIDEO, "num2words"),
    ),
    Family(
        "gemma3",
        "Gemma 3",
        grids.whole,
        views.crops,
        stacked_features=True,
        prefill="image blocks",
        type_argument="token_type_ids",
    ),
    Family(
        "mistral3",
        "Mistral Small 3.1",
        grids.sized,
        bounded.edge,
        image_tensors=_SIZED,
        packages=("torchvision",),
    ),
    Family(
        "paligemma",
        "PaliGemma",
        grids.whole,
        fixed,
        stacked_features=True,
        softcaps_logits=True,
        prefill="prefix",
        type_argument="token_type_ids",
        image_type=0,
        template=_PREFIX_TEMPLATE,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.model_type: row for row in _ROWS})


def family_of(config: Any) -> Family:
    """The row for a transformers config. Raises `ModelError` listing the supported families."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"model type {config.model_type!r} is not supported; supported: {supported}",
            param="model",
        )
    return family
