"""Linear layers for decode steps on CUDA: ours where it was measured to be faster than the library.

A decode step has few rows, and its time is that of reading the weights once. How near a matrix
library comes to that depends on the GPU, the shape and the version, so it is not guessed: at start
every shape is timed, ours against the library's, and ours is taken where its results are the same
up to rounding and it wins. More rows than `MAX_ROWS` always go to the library.
Knows modules and a clock; knows nothing about families or steps.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lookm.models.fused import replace_below
from lookm.models.trial import close, noise

logger = logging.getLogger(__name__)

ROWS = (1, 8, 16)  # decode batches that must all be faster
MORE_ROWS = 32  # where this is faster as well, the kernel takes up to so many
GAIN = 1.03  # less is not worth having two ways
REPEATS = 12
FLUSH_BYTES = 256 * 2**20  # more than any second-level cache

Clock = Callable[[Callable[[], Any]], float]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Choice:
    """A tile of the kernel, for up to `most_rows`, and how much faster it was than the library."""

    tile: Any
    most_rows: int
    gain: float


class SkinnyLinear(nn.Module):
    """`nn.Linear` by another kernel where there are few rows."""

    def __init__(self, linear: nn.Linear, kernel: Kernel, choice: Choice) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._kernel, self._choice = kernel, choice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.numel() // self.in_features
        if not 0 < num_rows <= self._choice.most_rows:
            return F.linear(x, self.weight, self.bias)
        rows_RC = x.reshape(num_rows, self.in_features)
        out_RO = self._kernel(rows_RC, self.weight, self.bias, self._choice.tile)
        return out_RO.view(*x.shape[:-1], self.out_features)


class Chooser:
    """Twins for linear layers. Each shape is timed once."""

    def __init__(self, kernel: Kernel, tiles: tuple[Any, ...], clock: Clock) -> None:
        self._kernel, self._tiles, self._clock = kernel, tiles, clock
        self._choices: dict[tuple[Any, ...], Choice | None] = {}

    @torch.inference_mode()
    def twin_of(self, module: nn.Module) -> nn.Module | None:
        """The faster twin of a linear layer, or None."""
        if type(module) is not nn.Linear or not module.weight.is_contiguous():
            return None
        key = (module.weight.shape, module.weight.dtype, module.bias is not None)
        if key not in self._choices:
            self._choices[key] = self._choose(module)
        choice = self._choices[key]
        return SkinnyLinear(module, self._kernel, choice) if choice else None

    def _choose(self, linear: nn.Linear) -> Choice | None:
        library = {rows: self._seconds(linear, None, rows) for rows in (*ROWS, MORE_ROWS)}
        best: Choice | None = None
        for tile in self._tiles:
            if not self._same(linear, tile):
                continue
            gains = {rows: library[rows] / self._seconds(linear, tile, rows) for rows in library}
            least = min(gains[rows] for rows in ROWS)
            if least >= max(GAIN, best.gain if best else 0):
                most_rows = MORE_ROWS if gains[MORE_ROWS] >= GAIN else max(ROWS)
                best = Choice(tile, most_rows, least)
        told = "the library's"
        if best is not None:
            told = f"own kernel, {best.gain:.2f}x as fast, to {best.most_rows} rows, {best.tile}"
        logger.info("linear %d x %d: %s", *linear.weight.shape, told)
        return best

    def _seconds(self, linear: nn.Linear, tile: Any, rows: int) -> float:
        x_RC = noise(rows, linear.in_features, linear.weight)
        if tile is None:
            return self._clock(lambda: F.linear(x_RC, linear.weight, linear.bias))
        return self._clock(lambda: self._kernel(x_RC, linear.weight, linear.bias, tile))

    def _same(self, linear: nn.Linear, tile: Any) -> bool:
        """At one row, at all the kernel takes, and at a number that is no power of two."""
        return all(
            close(
                F.linear(x_RC, linear.weight, linear.bias),
                self._kernel(x_RC, linear.weight, linear.bias, tile),
            )
            for x_RC in (noise(rows, linear.in_features, linear.weight) for rows in (1, 7, 32))
        )


def quicken(text_model: nn.Module, owner: Any, chooser: Chooser) -> None:
    """Put twins in the place of the text model's linear layers and of `owner.lm_head`."""
    counts = replace_below(text_model, chooser.twin_of)
    owner.lm_head = chooser.twin_of(owner.lm_head) or owner.lm_head
    logger.info("model: %d linear layers by own kernels", counts.total())


def cuda_chooser() -> Chooser:
    """With the Triton kernel and the device's clock; only where there is CUDA."""
    from lookm.attention.kernels import triton_linear

    return Chooser(triton_linear.linear, triton_linear.TILES, device_seconds)


def device_seconds(call: Callable[[], Any]) -> float:
    """Device time of one call whose weights are in no cache: the median of several, on CUDA."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    spent_ms: list[float] = []
    for _ in range(REPEATS):
        first, last = (_event() for _ in range(2))
        flush.zero_()
        first.record()
        call()
        last.record()
        last.synchronize()
        spent_ms.append(first.elapsed_time(last))
    return sorted(spent_ms)[REPEATS // 2] / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
