"""From a picture to an `ImageInput`: pixels as the model takes them, their tokens, what these are.

Knows transformers' image processors, and in which ways a family can show a picture (`detail`).
Refuses to know prompts: what stands in an image's place there is written beside its pixels.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lookm.kept import Grid, View
from lookm.models.detail import Asked, Detail, Step, choose
from lookm.models.families import Family
from lookm.models.grids import Seen, grids_of
from lookm.models.image_layouts import AMONG, NUM_TOKENS, PLACEHOLDER
from lookm.types import Array, ImageInput

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

NOT_UNDERSTOOD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
AS_IT_IS = Step(0)  # the checkpoint's own way; nobody asks what it costs
PLAIN = Detail()


class Preprocessing:
    """One model's pictures. `processor` is transformers', `settings` those its image processor is
    called with, `count` says how many image tokens a text has. Safe to call from several threads.
    """

    def __init__(
        self,
        family: Family,
        processor: Any,
        settings: Mapping[str, Any],
        count: Callable[[str], int],
    ) -> None:
        self._family = family
        self._processor = processor
        self._settings = settings
        self._count = count
        self._small_tokens = 0

    def learn(self, small: ImageInput) -> None:
        """What a small picture takes: the tokens of every picture, where all take the same."""
        self._small_tokens = small.num_tokens

    @property
    def fewest_tokens(self) -> int:
        """No picture takes fewer, whatever its detail."""
        try:
            return self._family.ladder.fewest(self._asked((1, 1)))
        except NOT_UNDERSTOOD:
            return 1

    def image(
        self, image: "Image.Image", digest: str, sent: tuple[int, int] | None, detail: Detail
    ) -> ImageInput:
        """One RGB image, resized, normalised, counted; see `Processor.image`."""
        sent = sent or image.size
        step = AS_IT_IS if detail == PLAIN else self._step(image.size, detail)
        tensors, num_tokens, grids = self._tensors(image, sent, step)
        view = View(*sent, grids)
        if self._family.two_layouts:
            among, num_among, among_grids = self._tensors(image, sent, Step(0, among=True))
            tensors |= {AMONG + name: array for name, array in among.items()}
            tensors[NUM_TOKENS] = np.array(num_among)
            view = replace(view, among=among_grids)
        if not detail.keeps(num_tokens):
            raise detail.refusal(num_tokens, "this image")
        name = f"{digest}/{step.name}" if step.name else digest
        return ImageInput(digest=name, tensors=tensors, num_tokens=num_tokens, view=view)

    def _step(self, size: tuple[int, int], detail: Detail) -> Step:
        """What is done for a detail. Where the checkpoint's settings are not understood nothing is:
        an image that is over its budget then is refused like any other."""
        try:
            return choose(self._family.ladder.steps(self._asked(size)), detail)
        except NOT_UNDERSTOOD:
            logger.warning("detail changes nothing: the image processor's settings are odd")
            logger.debug("what is odd about them", exc_info=True)
            return AS_IT_IS

    def _asked(self, size: tuple[int, int]) -> Asked:
        return Asked(size, self._processor, self._settings, self._small_tokens)

    def _tensors(
        self, image: "Image.Image", sent: tuple[int, int], step: Step
    ) -> tuple[dict[str, Array], int, tuple[Grid, ...]]:
        """What the processor makes of a picture: tensors, the number of its tokens, and what they
        stand for in the picture as it was sent."""
        from PIL.Image import Resampling

        if step.size is not None:
            image = image.resize(step.size, Resampling.LANCZOS)
        images = [image, image] if step.among else [image]
        settings = {**self._settings, **step.settings}
        outputs, texts = self._processor._process_images([images], **settings)
        tensors = {
            name: _array(outputs[name], len(images))
            for name in self._family.image_tensors
            if name in outputs
        }
        num_tokens = self._count(texts[0])
        seen = Seen(image.size, num_tokens, tensors, texts[0], self._processor, settings)
        grids = grids_of(seen, self._family.layout, sent)
        tensors[PLACEHOLDER] = np.frombuffer(texts[0].encode(), dtype=np.uint8)
        return tensors, num_tokens, grids


def _array(output: Any, num_images: int) -> Array:
    """One image's share of a processor's output: a list, or an array, of images or their tiles."""
    array = np.stack(output) if isinstance(output, list) else np.asarray(output)
    array = array[: max(1, len(array) // num_images)]
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" else None)
