"""One image, in each of the layouts a prompt may want it in; several that may be encoded at once.

Most families lay an image out in one way. LLaVA-OneVision cuts an image that is alone in its
prompt into tiles, and takes an image among others whole: other pixels, other tokens, other
features. `ImageInput` then carries both, the second one's entries under `AMONG`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lookm.models.families import Family
from lookm.types import ImageInput

AMONG = "among_others."
NUM_TOKENS = f"{AMONG}num_tokens"
PLACEHOLDER = "placeholder"  # what stands for the image in the prompt's text, UTF-8 as uint8


def arranged(images: Sequence[ImageInput], family: Family) -> tuple[ImageInput, ...]:
    """The images as a prompt of exactly these wants them; digests tell layouts apart."""
    if not family.two_layouts or len(images) < 2:
        return tuple(images)
    return tuple(_among_others(image) if NUM_TOKENS in image.tensors else image for image in images)


def least_tokens(image: ImageInput) -> int:
    """How many tokens it takes at least, whatever is beside it."""
    among = image.tensors.get(NUM_TOKENS)
    return image.num_tokens if among is None else min(image.num_tokens, int(among))


def _among_others(image: ImageInput) -> ImageInput:
    view = image.view
    return ImageInput(
        digest=f"{image.digest}/among-others",
        tensors={
            name.removeprefix(AMONG): array
            for name, array in image.tensors.items()
            if name.startswith(AMONG) and name != NUM_TOKENS
        },
        num_tokens=int(image.tensors[NUM_TOKENS]),
        view=view and replace(view, grids=view.grids if view.among is None else view.among),
    )


def alike(images: Sequence[ImageInput], max_group: int) -> Iterator[list[ImageInput]]:
    """The images in groups of up to `max_group` that one pass of the vision tower can encode.

    Those are single pictures of one size that come as pixels alone. Tiles, grids and masks say
    what belongs together in ways that differ by family: such images stay alone.
    """
    groups: dict[tuple[int, ...], list[ImageInput]] = {}
    for image in {image.digest: image for image in images}.values():
        shape = image.tensors["pixel_values"].shape if "pixel_values" in image.tensors else ()
        for_the_tower = image.tensors.keys() - {PLACEHOLDER}
        alone = for_the_tower != {"pixel_values"} or shape[0] != 1 or image.num_tokens == 1
        key = (-1, len(groups)) if alone else (image.num_tokens, *shape)
        groups.setdefault(key, []).append(image)
    for group in groups.values():
        for start in range(0, len(group), max_group):
            yield group[start : start + max_group]
