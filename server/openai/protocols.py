"""What the HTTP side needs of its neighbours. Tests put simple stand-ins here.

`ServedEngine` is `server.worker.client.EngineClient`, `ImageLoader` is `server.media.MediaLoader`,
`ChatProcessor` is `lookm.models.processor.Processor`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lookm.models.detail import Detail
from lookm.models.places import PlacedImage
from lookm.types import EngineStats, ImageInput, ModelInfo, Request, TokenEvent
from server.media import Known, LoadedImage, Source

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")


class ServedEngine(Protocol):
    """Answers requests. Everything happens on the event loop, nothing blocks it."""

    info: ModelInfo | None

    @property
    def ready(self) -> bool: ...
    @property
    def condition(self) -> str: ...
    @property
    def totals(self) -> EngineStats: ...

    def submit(
        self, request: Request, accepted: Callable[[], None]
    ) -> AsyncGenerator[TokenEvent]: ...


class ChatProcessor(Protocol):
    """Turns messages and pixels into ids and tensors. Called from a thread pool."""

    @property
    def image_token_id(self) -> int: ...
    @property
    def max_token_characters(self) -> int: ...
    @property
    def template(self) -> str: ...

    @property
    def fewest_image_tokens(self) -> int: ...

    def image(
        self,
        image: "Image.Image",
        digest: str,
        sent: tuple[int, int] | None = None,
        detail: Detail = ...,
    ) -> ImageInput: ...
    def tokens_per_image(self, images: Sequence[ImageInput]) -> tuple[int, ...]: ...
    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageInput],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]: ...
    def rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str: ...
    def text(self, text: str) -> tuple[int, ...]: ...
    def places(
        self, ids: Sequence[int], images: Sequence[ImageInput]
    ) -> tuple[PlacedImage, ...]: ...
    def shown(self, ids: Sequence[int]) -> list[str]: ...


class ImageLoader(Protocol):
    """Loads the images of one request from untrusted URLs and files, for each any number of them.

    What `use` makes of each is all that stays; what is `known` by its digest is not decoded again.
    Raises `server.media.MediaError`.
    """

    @property
    def held_bytes(self) -> int: ...

    async def load_all(
        self,
        sources: Sequence[Source],
        params: Sequence[str | None],
        use: Callable[[LoadedImage], Awaitable[T]],
        known: Known[T],
    ) -> Sequence[Sequence[T]]: ...
    async def aclose(self) -> None: ...
