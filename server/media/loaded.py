"""What the loader gives for a URL, and what it is told to do with it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from PIL import Image

from server.media.budget import Budget


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """One upright RGB picture. `width` and `height` are before any reduction.

    `digest` is the SHA-256 of the encoded bytes, in hex. `label` names it
    where it is one of several (its page, its time); `param` is what errors call its URL.
    """

    image: Image.Image = field(repr=False)
    digest: str
    width: int
    height: int
    num_bytes: int
    fetch_s: float
    decode_s: float
    label: str | None = None
    param: str | None = None


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Use = Callable[[LoadedImage], Awaitable[T]]


class Known(Protocol[T_co]):
    """What `use` made of a picture earlier, by its digest and for which `param` it is asked; None:
    it is not known any more."""

    def __call__(
        self, digest: str, label: str | None = None, param: str | None = None, /
    ) -> T_co | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Wish(Generic[T]):
    """What a request wants of the pictures of one of its URLs."""

    param: str | None
    budget: Budget
    use: Use[T]
    known: Known[T]

    def found(self, digest: str, label: str | None = None) -> T | None:
        """What is known of a picture, for this wish."""
        return self.known(digest, label, self.param)
