"""Which tokens of a prompt were kept, with what they stand for; as JSON, and back into arrays.

    positions = lookm.positions.decode(answer)        what `usage.kv_cache.positions` says
    positions.kept_LKT.mean(axis=(0, 1))              the share of layers and heads, by token
    lookm.show(positions, [image])                    a picture of it

`docs/positions.md` has the format. Knows bits, images' places and texts; no engine, no HTTP.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from lookm.errors import RequestError
from lookm.kept import Bits, KeptPositions, Mask
from lookm.models.places import PlacedGrid, PlacedImage
from lookm.types import ImageInput

ENCODING = "bitmap+zlib"

__all__ = ["PlacedGrid", "PlacedImage", "Positions", "TextRun", "decode", "describe", "encode"]


@dataclass(frozen=True, slots=True)
class TextRun:
    """Text between images: what each token shows, from prompt token `first_token` on."""

    first_token: int
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """What was kept of one prompt, in L layers and K KV heads, and what its T tokens are.

    `images` and `text` are empty where nobody said what the tokens are.
    """

    bits: KeptPositions
    images: tuple[PlacedImage, ...] = ()
    text: tuple[TextRun, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.bits.num_tokens

    @property
    def num_unknown(self) -> int:
        """Of the first tokens it is not known what was kept; they are False everywhere."""
        return self.bits.num_unknown

    @property
    def kept_LKT(self) -> Mask:  # noqa: N802 shapes live in names
        """Whether a token is kept, bool `[L, K, T]`."""
        return self.bits.kept_LKT

    @property
    def merged_LKT(self) -> Mask | None:  # noqa: N802
        """Whether it was evicted and merged into kept ones; None where the policy never does."""
        return self.bits.merged_LKT


class Describer(Protocol):
    """What a `lookm.models.processor.Processor` knows of tokens."""

    def places(self, ids: Sequence[int], images: Sequence[ImageInput]) -> tuple[PlacedImage, ...]:
        """Where the images of a prompt are."""

    def shown(self, ids: Sequence[int]) -> list[str]:
        """What each id adds to a text."""


def describe(
    kept: KeptPositions, ids: Sequence[int], images: Sequence[ImageInput], processor: Describer
) -> Positions:
    """What the engine says was kept of a prompt of `ids` and `images`, with what its tokens are."""
    placed = processor.places(ids, images)
    ends = [0, *(image.first_token + image.num_tokens for image in placed)]
    firsts = [*(image.first_token for image in placed), len(ids)]
    runs = [
        TextRun(start, tuple(processor.shown(ids[start:end])))
        for start, end in zip(ends, firsts, strict=True)
        if end > start
    ]
    return Positions(kept, placed, tuple(runs))


def encode(positions: Positions) -> dict[str, Any]:
    """As JSON; see `docs/positions.md`. Large prompts take a while: not on an event loop."""
    bits = positions.bits
    num_layers, num_heads, _ = bits.kept.shape
    return {
        "encoding": ENCODING,
        "num_tokens": bits.num_tokens,
        "num_layers": num_layers,
        "num_kv_heads": num_heads,
        "num_unknown": bits.num_unknown,
        "kept": _written(bits.kept),
        "merged": None if bits.merged is None else _written(bits.merged),
        "text": [asdict(run) for run in positions.text],
        "images": [asdict(image) for image in positions.images],
    }


def decode(answer: Any) -> Positions:
    """Back from JSON: what `encode` made, or a whole answer of the server, or its last chunk, as
    the openai client or `json` gives it. Raises `RequestError` for anything else.
    """
    try:
        return _decode(_found(answer))
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise RequestError(
            f"these are no positions ({type(error).__name__}: {error}): a server sends them where "
            'a request says "kv_cache": {..., "positions": true}',
            param="positions",
        ) from error


def _found(answer: Any) -> Mapping[str, Any]:
    """The mapping that has `kept`, in an answer or its `usage`."""
    for name in ("usage", "kv_cache", "positions"):
        inside = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        answer = answer if inside is None else inside
    found: Mapping[str, Any] = answer
    return found


def _decode(found: Mapping[str, Any]) -> Positions:
    if found["encoding"] != ENCODING:
        raise ValueError(f"unknown encoding {found['encoding']!r}")
    num_tokens = int(found["num_tokens"])
    shape = (int(found["num_layers"]), int(found["num_kv_heads"]), -(-num_tokens // 8))
    merged = found["merged"]
    bits = KeptPositions(
        num_tokens=num_tokens,
        kept=_read(found["kept"], shape),
        merged=None if merged is None else _read(merged, shape),
        num_unknown=int(found.get("num_unknown", 0)),
    )
    images = tuple(
        PlacedImage(
            **{name: int(image[name]) for name in ("width", "height", "first_token", "num_tokens")},
            grids=tuple(_grid(grid) for grid in image["grids"]),
        )
        for image in found["images"]
    )
    text = tuple(TextRun(int(run["first_token"]), tuple(run["tokens"])) for run in found["text"])
    return Positions(bits, images, text)


def _grid(grid: Mapping[str, Any]) -> PlacedGrid:
    left, top, right, bottom = (float(edge) for edge in grid["box"])
    return PlacedGrid(
        first_token=int(grid["first_token"]),
        rows=int(grid["rows"]),
        columns=int(grid["columns"]),
        row_stride=int(grid["row_stride"]),
        box=(left, top, right, bottom),
    )


def _written(bits: Bits) -> str:
    return base64.b64encode(zlib.compress(bits.tobytes())).decode()


def _read(text: str, shape: tuple[int, int, int]) -> Bits:
    """Never more than `shape` says: what is sent may say anything."""
    size = shape[0] * shape[1] * shape[2]
    data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of bits for {shape}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
