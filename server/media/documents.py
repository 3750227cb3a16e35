"""Files of a request: the pages of a PDF, in their order, as pictures; an image as itself.

    bytes -> ends as a PDF does, not too large -> how many pages (`sandbox`) -> which are wanted,
    not more than a request may have -> each, when it is its turn: known? else drawn (`sandbox`)

A page's digest is of the document's, its number and how it is drawn: a document that comes again is
neither opened nor drawn, as long as `known` remembers its pages. Knows the order of these steps and
their limits; how a PDF is read, `pdf` knows.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from PIL import Image

from server.media import pdf
from server.media.budget import Memory
from server.media.config import MediaConfig
from server.media.loaded import LoadedImage, T, Wish
from server.media.media_error import MediaError
from server.media.sandbox import Order, Sandbox
from server.media.together import together
from server.turns import Turns

DEFAULT_SIDE = 1344  # where pictures keep every pixel
MAX_REMEMBERED = 4096  # documents whose number of pages is known
INSTALL = "pip install 'lookm-server[pdf]'"


def reads_pdf() -> bool:
    """Whether the extra is installed that it takes."""
    return find_spec("pypdfium2") is not None


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file of a request: `data` where that is here already, else at `url`.

    `pages`: those that are wanted of a document, as in "1-3,7"; None: all.
    """

    url: str = field(default="", repr=False)
    data: bytes | None = field(default=None, repr=False)
    pages: str | None = None


@dataclass(slots=True)
class _Rendering:
    """One document that is being drawn."""

    data: bytes
    digest: str
    fetch_s: float
    left_s: float


class Documents:
    """Draws documents, with the turns, the memory and the processes that pictures have."""

    def __init__(
        self, config: MediaConfig, decodes: Turns, memory: Memory, sandbox: Sandbox
    ) -> None:
        self._config = config
        self._decodes = decodes
        self._memory = memory
        self._sandbox = sandbox
        self._side = config.target_side or DEFAULT_SIDE
        self._num_pages: OrderedDict[str, int] = OrderedDict()

    async def load(
        self, data: bytes, pages: str | None, fetch_s: float, wish: Wish[T]
    ) -> tuple[T, ...]:
        """What the wish makes of each page. Raises `MediaError`, or what `use` raises."""
        if not reads_pdf():
            message = f"This server does not read PDFs; with an extra it does: {INSTALL}."
            raise MediaError("unsupported_file", message)
        pdf.check_ends(data)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        num_pages = await self._count(data, digest)
        if not num_pages:
            raise pdf.damaged("The PDF has no pages.")
        numbers = wanted(pages, num_pages, wish.param)
        wish.budget.take_images(len(numbers))
        rendering = _Rendering(data, digest, fetch_s, self._config.document_limit_s)
        return tuple(await together(self._page(rendering, n, wish) for n in numbers))

    async def _count(self, data: bytes, digest: str) -> int:
        """How many pages it has, as it says: which of them are there is seen when they are."""
        if digest in self._num_pages:
            self._num_pages.move_to_end(digest)
            return self._num_pages[digest]
        async with self._decodes.turn():
            facts, _ = await self._run("document", "The PDF", {}, pdf.OPENING_BYTES, data)
        self._num_pages[digest] = int(facts["num_pages"])
        if len(self._num_pages) > MAX_REMEMBERED:
            self._num_pages.popitem(last=False)
        return self._num_pages[digest]

    async def _page(self, rendering: _Rendering, number: int, wish: Wish[T]) -> T:
        label = f"Page {number}"
        named = f"page {number} of {rendering.digest}, shorter side {self._side}"
        digest = hashlib.sha256(named.encode()).hexdigest()
        if (found := wish.found(digest, label)) is not None:
            return found
        options = {
            "number": number,
            "side": self._side,
            "max_pixels": self._config.max_pixels,
            "max_aspect": self._config.max_aspect,
        }
        cost_bytes = pdf.WORKING_BYTES + pdf.BYTES_A_PIXEL * pdf.MAX_PAGE_PIXELS
        async with self._decodes.turn():
            if rendering.left_s <= 0:
                raise MediaError(
                    "file_too_large",
                    f"The PDF takes more than {self._config.document_limit_s:g} s to draw, up to "
                    f"page {number}. Send fewer pages.",
                )
            begun_s = time.perf_counter()
            facts, pixels = await self._run("page", label, options, cost_bytes, rendering.data)
            image = Image.frombytes("RGB", tuple(facts["kept"]), pixels)
            del pixels
            took_s = time.perf_counter() - begun_s
            rendering.left_s -= took_s
            wish.budget.take_pixels(image.width * image.height)
            fetch_s, rendering.fetch_s = rendering.fetch_s, 0.0
            loaded = LoadedImage(
                image=image,
                digest=digest,
                width=image.width,
                height=image.height,
                num_bytes=len(rendering.data),
                fetch_s=fetch_s,
                decode_s=took_s,
                label=label,
                param=wish.param,
            )
            return await wish.use(loaded)

    async def _run(
        self, job: str, what: str, options: Mapping[str, Any], cost_bytes: int, data: bytes
    ) -> tuple[dict[str, Any], bytearray]:
        """A job on the document, when there is memory for it."""
        limits = (cost_bytes, self._config.decode_cpu_s, self._config.decode_limit_s)
        async with self._memory.hold(cost_bytes + len(data)):
            return await self._sandbox.run(Order(job, options, *limits, what), data)


def wanted(pages: str | None, num_pages: int, param: str | None) -> list[int]:
    """The numbers that "1-3,7" names, each once, in that order; all where nothing is said.

    Raises `MediaError` for pages that are not there.
    """
    if pages is None:
        return list(range(1, num_pages + 1))
    numbers: dict[int, None] = {}
    num_named = 0
    for item in pages.split(","):
        first, _, last = item.partition("-")
        begin, end = int(first), int(last or first)
        num_named += end + 1 - begin
        if not 1 <= begin <= end <= num_pages or num_named > pdf.MAX_PAGES:
            raise MediaError(
                "invalid_file",
                f"'{item}' are not pages of this document, which has {num_pages}, or more than "
                f"{pdf.MAX_PAGES} are named.",
                param=param and f"{param.rpartition('.')[0]}.pages",
            )
        numbers |= dict.fromkeys(range(begin, end + 1))
    return list(numbers)
