"""Which tokens of a prompt were kept, and which parts of a picture they stand for, as values.

Knows bits and boxes; who asks for them, and how they come about, is others' to know.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True, eq=False)
class KeptPositions:
    """Which of a prompt's `num_tokens` the device holds, for each layer and KV head.

    `kept` are the bits of `numpy.packbits`, uint8 `[L, K, ceil(T / 8)]`; so are `merged`: tokens
    that were evicted and whose rows went into kept ones, None where the policy merges nothing.
    Nothing is known of the first `num_unknown` tokens, whose bits are 0: they were compressed in
    earlier turns, which did not ask.
    """

    num_tokens: int
    kept: Bits
    merged: Bits | None = None
    num_unknown: int = 0

    @property
    def kept_LKT(self) -> Mask:  # noqa: N802 shapes live in names
        """`kept` as bool `[L, K, T]`."""
        return _unpacked(self.kept, self.num_tokens)

    @property
    def merged_LKT(self) -> Mask | None:  # noqa: N802
        """`merged` as bool `[L, K, T]`."""
        return None if self.merged is None else _unpacked(self.merged, self.num_tokens)


@dataclass(frozen=True, slots=True)
class Grid:
    """Features `first + row * stride + column` of an image, which cover `box` of the picture.

    The box may reach outside of the picture, where that was padded.
    """

    first: int
    rows: int
    columns: int
    stride: int
    box: Box


@dataclass(frozen=True, slots=True)
class View:
    """A picture as it was sent, in pixels, and what its tokens stand for: no grids where that is
    not known. `among`: the grids where it is one of several, if these are others.
    """

    width: int
    height: int
    grids: tuple[Grid, ...] = ()
    among: tuple[Grid, ...] | None = None


def _unpacked(bits: Bits, num_tokens: int) -> Mask:
    return np.unpackbits(bits, axis=-1, count=num_tokens).astype(bool)
