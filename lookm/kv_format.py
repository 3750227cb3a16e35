"""How numbers of keys and values are stored: as the model has them, or as a byte each.

    auto   the model's own type
    int8   round(x / scale), in -127 .. 127
    fp8    x / scale as float8_e4m3fn, in -448 .. 448

Bytes have a scale, float32, for each row of each KV head: its largest number / 127 (/ 448). A row
is so written once, alone, whenever it comes, and read without its neighbours. Knows numbers;
knows nothing about pages. R rows of anything, D head size.
"""

from dataclasses import dataclass

import torch

from lookm.config import KvCacheDType

#: The largest number of a type that is scaled.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST = 1e-30  # rows below it are zeros: their scale would have no inverse
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class KvFormat:
    """`stored` is the type of the numbers in memory, `rows` of those that come and go."""

    stored: torch.dtype
    rows: torch.dtype

    @classmethod
    def of(cls, name: KvCacheDType, rows: torch.dtype) -> "KvFormat":
        """The format called `name` for a model of the type `rows`."""
        own = {"auto": rows, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
        return cls(own[name], rows)

    @property
    def scaled(self) -> bool:
        """Whether numbers are rounded to bytes, and rows have scales."""
        return self.stored in LARGEST

    def row_bytes(self, size: int) -> int:
        """Bytes of one head's row of K or of V, with its scale."""
        return size * self.stored.itemsize + (SCALE_BYTES if self.scaled else 0)


def pack(rows_RD: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`[..., D]` as bytes of the type `stored` and their scales, float32 `[...]`. In torch.

    int8 is rounded to nearest, ties to even. Example: a row of 2, -1 and 0.1 is 127, -64 and 6
    with the scale 2 / 127.
    """
    wide_RD = rows_RD.float()
    top_R = wide_RD.abs().amax(-1).clamp(min=SMALLEST)
    # A tensor, not a number, which torch would divide by by way of a reciprocal, rounded twice.
    largest_R = torch.full_like(top_R, LARGEST[stored])
    bytes_RD = wide_RD * (largest_R / top_R)[..., None]
    if stored == torch.int8:
        bytes_RD = bytes_RD.round()
    return bytes_RD.to(stored), top_R / largest_R


def unpack(bytes_RD: torch.Tensor, scale_R: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What `pack` packed, but for the rounding; multiplied in float32. In torch."""
    return (bytes_RD.float() * scale_R[..., None]).to(dtype)
