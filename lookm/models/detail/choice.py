"""How finely a picture is to be seen: what a request may ask, and which of a family's ways it gets.

    low    512 x 512 pixels of it, as OpenAI says; the fewest tokens there are, where that is more
    auto   as the checkpoint's own processor sees it
    high   as finely as the family can

`max_tokens` is a budget of vision tokens beside that: the finest way that keeps to it is taken, and
where there is none the picture is refused. A family's ways are its *ladder* (`ladders`). Knows how
to choose; nothing of pixels.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lookm.errors import RequestError

Level = Literal["low", "auto", "high"]
LOW_PIXELS = 512 * 512


@dataclass(frozen=True, slots=True)
class Detail:
    """What is asked of one picture. `max_tokens` counts vision tokens, None is no bound."""

    level: Level = "auto"
    max_tokens: int | None = None

    @property
    def name(self) -> str:
        """Another for everything that may be asked; empty where nothing is."""
        level = "" if self.level == "auto" else self.level
        return level if self.max_tokens is None else f"{level}-{self.max_tokens}"

    def keeps(self, num_tokens: int) -> bool:
        """Whether so many tokens are within the budget."""
        return self.max_tokens is None or num_tokens <= self.max_tokens

    def refusal(self, fewest: int, whose: str) -> RequestError:
        """What is raised where `whose` tokens are `fewest` at least, and over the budget."""
        return RequestError(
            f"{whose} takes at least {fewest} tokens, and max_tokens_per_image is "
            f"{self.max_tokens}: allow {fewest} or more.",
            param="max_tokens_per_image",
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One way of showing a picture.

    `num_tokens` it takes, `pixels` the vision tower sees of it in all views. How: the picture is
    resized to `size` (width, height) if there is one, the image processor gets `settings` on top of
    the checkpoint's, and with `among` it is laid out as one image of several. `name` tells the
    ways of one picture apart; the checkpoint's own has none.
    """

    num_tokens: int
    pixels: int = 0
    name: str = ""
    size: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    among: bool = False


def choose(ladder: Iterable[Step], detail: Detail) -> Step:
    """The finest step of a ladder that keeps to what is asked. The ladder begins with the finest,
    and has the checkpoint's own. Raises `RequestError` where the budget is too small for all."""
    fewest = None
    for step in _offered(ladder, detail.level):
        if detail.keeps(step.num_tokens):
            return step
        fewest = min(step.num_tokens, fewest or step.num_tokens)
    assert fewest is not None, "a ladder has a step"
    raise detail.refusal(fewest, "this image")


def _offered(ladder: Iterable[Step], level: Level) -> Iterator[Step]:
    """The steps that a level leaves, the finest first."""
    coarsest, at_own, offered = None, level == "high", False
    for step in ladder:
        at_own = at_own or not step.name
        coarsest = step
        if at_own and (level != "low" or step.pixels <= LOW_PIXELS):
            offered = True
            yield step
    if not offered and coarsest is not None:
        yield coarsest
