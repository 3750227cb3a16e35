"""Which model families are supported, and the facts in which they differ: one row each.

A row is added by: naming the config's `model_type`, saying which processor outputs belong to one
image, and running the contract test over it. Everything else is generic (`adapter`).
"""

from dataclasses import dataclass
from typing import Any

from lookm.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """What the adapter must know about a family beyond transformers' common interface.

    `image_tensors`: outputs of the image processor that `get_image_features` takes, per image.
    """

    model_type: str
    title: str
    image_tensors: tuple[str, ...] = ("pixel_values",)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (Family("llava", "LLaVA 1.5, and any vision tower and decoder in LLaVA's form"),)
}


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
