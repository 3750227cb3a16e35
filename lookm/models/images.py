"""One image, in each of the layouts a prompt may want it in.

Most families lay an image out in one way. LLaVA-OneVision cuts an image that is alone in its
prompt into tiles, and takes an image among others whole: other pixels, other tokens, other
features. `ImageInput` then carries both, the second one's entries under `AMONG`.
"""

from collections.abc import Sequence

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


def _among_others(image: ImageInput) -> ImageInput:
    return ImageInput(
        digest=f"{image.digest}/among-others",
        tensors={
            name.removeprefix(AMONG): array
            for name, array in image.tensors.items()
            if name.startswith(AMONG) and name != NUM_TOKENS
        },
        num_tokens=int(image.tensors[NUM_TOKENS]),
    )
