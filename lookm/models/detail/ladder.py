"""What a ladder is made of: a picture and who will see it, the ways of showing it, and in words
what a family's levels of detail mean."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lookm.models.detail.choice import Step

Size = tuple[int, int]  # width and height


def setting(processor: Any, given: Mapping[str, Any], name: str) -> Any:
    """One of an image processor's: what it is called with, else its own."""
    value = given.get(name)
    return getattr(processor.image_processor, name, None) if value is None else value


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture of `size`, and transformers' `processor`, which is called with `given` settings.
    `small_tokens` is what a small picture takes."""

    size: Size
    processor: Any
    given: Mapping[str, Any]
    small_tokens: int = 0

    def setting(self, name: str) -> Any:
        """One of the image processor's."""
        return setting(self.processor, self.given, name)


@dataclass(frozen=True, slots=True)
class Ladder:
    """`steps`: the ways of showing a picture, each with fewer tokens than the one before; what they
    say is what the processor makes of it. `fewest`: no picture of the checkpoint takes fewer.

    The rest is what documents say: what `low` and `high` are, and what a budget does.
    """

    steps: Callable[[Asked], Iterator[Step]]
    fewest: Callable[[Asked], int]
    low: str
    high: str
    budget: str


ONE_SIZE = "nothing: every picture takes the same"


def _fixed(asked: Asked) -> Iterator[Step]:
    yield Step(asked.small_tokens)


def _small_tokens(asked: Asked) -> int:
    return asked.small_tokens


fixed = Ladder(_fixed, _small_tokens, ONE_SIZE, ONE_SIZE, "refused where a picture takes more")
