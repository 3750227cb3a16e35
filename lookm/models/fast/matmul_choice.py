"""A matrix product with what stands around it, by the kernel that was measured to be faster.

A decode step has few rows, and its time is that of reading the weights once, and of the launches in
between. How near a matrix library comes to that depends on the GPU, the shape and the version, so
it is not guessed: at start every shape is timed, one launch of ours against the library's product
with its norm, gate and sum around it, as a CUDA graph would replay them. Ours is taken where it
gives the same up to rounding and wins. Many rows always go to the library.
Knows modules and a clock; knows nothing about families or steps.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lookm.models.fast.equivalence import close, noise
from lookm.models.fast.linear import is_plain

logger = logging.getLogger(__name__)

ROWS = (1, 8, 16)  # decode batches that must all be faster
MORE_ROWS = 32  # where this is faster as well, the kernel takes up to so many
GAIN = 1.03  # less is not worth having two ways
REPEATS = 12
FLUSH_BYTES = 256 * 2**20  # more than any second-level cache

Clock = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True, slots=True)
class TileChoice:
    """A tile of the kernel, for up to `max_rows`, and how much faster it was than the library."""

    tile: Any
    max_rows: int
    gain: float


class Product(nn.Module):
    """`residual + gate(norm(x) weight^T + bias)`, `[..., C] -> [..., O]`.

    `norm` is a `fused.FusedNorm` or None, `gate` takes `[R, 2 O]` to `[R, O]` or is None. Without
    a choice, and for more rows than it is for, one after the other.
    """

    def __init__(
        self,
        linear: nn.Linear,
        kernel: Callable[..., torch.Tensor],
        *,
        norm: Any = None,
        gate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.norm = linear.weight, linear.bias, norm
        self.in_features = linear.in_features
        self.out_features = linear.out_features // 2 if gate else linear.out_features
        self._kernel, self._gate = kernel, gate
        self.choice: TileChoice | None = None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        num_rows = x.numel() // self.in_features
        if self.choice is None or not 0 < num_rows <= self.choice.max_rows:
            return self.by_library(x, residual)
        return self.by_kernel(self.choice.tile, x, residual)

    def by_library(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Step by step."""
        out = F.linear(x if self.norm is None else self.norm(x), self.weight, self.bias)
        out = out if self._gate is None else self._gate(out)
        return out if residual is None else residual + out

    def by_kernel(
        self, tile: Any, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """In one launch, but for a norm of float16, which is one of its own."""
        inside = None
        if self.norm is not None and x.dtype == torch.float16:
            x = self.norm(x)
        elif self.norm is not None:
            inside = (self.norm.weight, self.norm.epsilon)
        out = self._kernel(
            x.reshape(-1, self.in_features),
            self.weight,
            self.bias,
            tile,
            norm=inside,
            gated=self._gate is not None,
            residual_RO=None if residual is None else residual.reshape(-1, residual.shape[-1]),
        )
        return out.view(*x.shape[:-1], out.shape[-1])


class Chooser:
    """Makes products. Each shape is timed once, with or without a residual as it will be used."""

    def __init__(
        self, kernel: Callable[..., torch.Tensor], tiles: tuple[Any, ...], clock: Clock
    ) -> None:
        self._kernel, self._tiles, self._clock = kernel, tiles, clock
        self._choices: dict[tuple[Any, ...], TileChoice | None] = {}

    @torch.inference_mode()
    def product(
        self,
        linear: nn.Linear,
        *,
        norm: Any = None,
        gate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        residual: bool = False,
    ) -> Product:
        """`linear` with what stands around it, by the faster way."""
        product = Product(linear, self._kernel, norm=norm, gate=gate)
        weight, parts = linear.weight, (norm is not None, gate is not None, residual)
        key = (*weight.shape, weight.dtype, linear.bias is not None, *parts)
        if key not in self._choices:
            self._choices[key] = self._choose(product, residual)
            _log(product, parts, self._choices[key])
        product.choice = self._choices[key]
        return product

    @torch.inference_mode()
    def replacement_for(self, module: nn.Module) -> nn.Module | None:
        """A linear layer alone, where that is faster than the library; else None."""
        if not is_plain(module) or not module.weight.is_contiguous():
            return None
        product = self.product(module)
        return product if product.choice else None

    def _choose(self, product: Product, residual: bool) -> TileChoice | None:
        library = {
            rows: self._seconds(product, None, rows, residual) for rows in (*ROWS, MORE_ROWS)
        }
        best: TileChoice | None = None
        for tile in self._tiles:
            if not self._same(product, tile, residual):
                continue
            gains = {
                rows: spent_s / self._seconds(product, tile, rows, residual)
                for rows, spent_s in library.items()
            }
            least = min(gains[rows] for rows in ROWS)
            if least >= max(GAIN, best.gain if best else 0):
                max_rows = MORE_ROWS if gains[MORE_ROWS] >= GAIN else max(ROWS)
                best = TileChoice(tile, max_rows, least)
        return best

    def _seconds(self, product: Product, tile: Any, rows: int, residual: bool) -> float:
        x, before = _inputs(product, rows, residual)
        if tile is None:
            return self._clock(lambda: product.by_library(x, before))
        return self._clock(lambda: product.by_kernel(tile, x, before))

    def _same(self, product: Product, tile: Any, residual: bool) -> bool:
        """At one row, at all the kernel takes, and at a number that is no power of two."""
        return all(
            close(product.by_library(*each), product.by_kernel(tile, *each))
            for each in (_inputs(product, rows, residual) for rows in (1, 7, MORE_ROWS))
        )


def _inputs(
    product: Product, rows: int, residual: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    x_RC = noise(rows, product.in_features, product.weight)
    return x_RC, noise(rows, product.out_features, product.weight) if residual else None


def _log(product: Product, parts: tuple[bool, bool, bool], choice: TileChoice | None) -> None:
    names = [
        name for name, is_there in zip(("norm", "gate", "sum"), parts, strict=True) if is_there
    ]
    winner = "the library's"
    if choice is not None:
        winner = f"own kernel, {choice.gain:.2f}x as fast, to {choice.max_rows} rows, {choice.tile}"
    shape = " x ".join(map(str, product.weight.shape))
    logger.info("product %s: %s", " with ".join([shape, *names]), winner)


def replay_seconds(call: Callable[[], Any]) -> float:
    """Device time of one call as a CUDA graph, its weights in no cache: the median of several."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    spent_ms: list[float] = []
    for _ in range(REPEATS):
        first, last = (_event() for _ in range(2))
        flush.zero_()
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        spent_ms.append(first.elapsed_time(last))
    return sorted(spent_ms)[REPEATS // 2] / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
