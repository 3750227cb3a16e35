"""A processor without a model, for `--model fake`: HTTP behaviour without torch or a checkpoint.

One token per word, a fixed number per image. The ids mean nothing to anyone but the fake engine,
whose mishaps a test asks for by beginning a message with `fake:` and their name.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lookm.kept import Grid, View
from lookm.models.detail import Detail
from lookm.models.places import PlacedImage, places
from lookm.types import ImageInput
from server.fake import engine as fake

if TYPE_CHECKING:
    from PIL import Image

PLAIN = Detail()
SIDE = 8
IMAGE_TOKENS = SIDE**2
IMAGE_TOKEN_ID = 1
FIRST_WORD_ID = 1000
NUM_WORDS = 30_000

MISHAPS = {
    "fake:raise": fake.RAISE_ID,
    "fake:exit": fake.EXIT_ID,
    "fake:reject": fake.REJECT_ID,
    "fake:error": fake.ERROR_ID,
    "fake:stop": fake.STOP_ID,
    "fake:slow": fake.SLOW_ID,
    "fake:hang": fake.HANG_ID,
    "fake:spin": fake.SPIN_ID,
}


class FakeProcessor:
    """See the module; the methods are `lookm.models.processor.Processor`'s."""

    template = ""
    image_token_id = IMAGE_TOKEN_ID
    max_token_characters = 1024  # words are as long as one likes

    fewest_image_tokens = IMAGE_TOKENS

    def image(
        self,
        image: "Image.Image",
        digest: str,
        sent: tuple[int, int] | None = None,
        detail: Detail = PLAIN,
    ) -> ImageInput:
        """The size of the image, as if it were its pixels. The same in every detail."""
        del detail  # a budget for fewer tokens is refused before
        width, height = sent or image.size
        size = np.asarray(image.size, dtype=np.float32)
        view = View(width, height, (Grid(0, SIDE, SIDE, SIDE, (0, 0, width, height)),))
        return ImageInput(digest, {"pixel_values": size}, IMAGE_TOKENS, view)

    def tokens_per_image(self, images: Sequence[ImageInput]) -> tuple[int, ...]:
        """Those of each."""
        return tuple(image.num_tokens for image in images)

    def places(self, ids: Sequence[int], images: Sequence[ImageInput]) -> tuple[PlacedImage, ...]:
        """Where the images are."""
        return places(ids, images, IMAGE_TOKEN_ID)

    def shown(self, ids: Sequence[int]) -> list[str]:
        """Ids do not remember their words."""
        return [f" word-{id}" for id in ids]

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageInput],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """One id per word, in the order of the parts."""
        del images, tools  # each image has the same number of tokens; tools are refused
        ids: list[int] = []
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image":
                    ids += [IMAGE_TOKEN_ID] * IMAGE_TOKENS
                else:
                    ids += self.text(part["text"])
        return tuple(ids)

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """A template that does not show tools."""
        del messages, tools
        return ""

    def text(self, text: str) -> tuple[int, ...]:
        """One id per word; a mishap's name stands for its id."""
        return tuple(MISHAPS.get(word) or _word_id(word) for word in text.split())


def _word_id(word: str) -> int:
    return FIRST_WORD_ID + zlib.crc32(word.encode()) % NUM_WORDS
