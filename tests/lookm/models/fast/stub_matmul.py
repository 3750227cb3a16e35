"""A kernel for `models.fast.matmul_choice` in plain torch, and clocks that say what is faster."""

from typing import Any

from torch import nn


def silu_mul(x: Any) -> Any:
    gate, up = x.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def rms_norm(x: Any, weight: Any, epsilon: Any) -> Any:
    return weight * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


class TorchKernel:
    """The library's numbers, but for the tile called "wrong"; notes how many rows it was given."""

    def __init__(self) -> None:
        self.rows = []

    def __call__(
        self, x: Any, weight: Any, bias: Any, tile: Any, *, norm: Any, gated: Any, residual_RO: Any
    ) -> Any:
        self.rows.append(len(x))
        out = nn.functional.linear(rms_norm(x, *norm) if norm else x, weight, bias)
        out = silu_mul(out) if gated else out
        return out + (tile == "wrong") + (0 if residual_RO is None else residual_RO)


class Clock:
    """Seconds by tile (None: the library) and number of rows, for what `Chooser` times."""

    def __init__(self, seconds: Any) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, call: Any) -> Any:
        self.calls += 1
        cells = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
        tile = cells["tile"].cell_contents if "tile" in cells else None
        return self.seconds(tile, len(cells["x"].cell_contents))


def ours_is_faster(tile: Any, rows: Any) -> Any:
    return 1.0 if tile is None else 0.5
