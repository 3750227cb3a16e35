"""A forward pass layer by layer, in tiles of rows, that may stop after any tile and go on later.

A layer is row-wise but for its attention, so all tiles of layer l run before layer l + 1. To go on,
the forward pass is begun again: layers that are done return what they are given, and the one that
is under way goes on from the hidden states it was given first. The model's own modules stay as they
are; each layer's `forward` is wrapped once. Knows rows; knows no pages and no policies.

    layer l      [ tile | tile | tile ...        <- paused here: `hidden`, and `out` of two tiles
    layer l + 1
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from lookm.models.attention_interface import LayerRows, PaddedContext, StepContext
from lookm.models.inputs import PackedRows
from lookm.progress import Progress

Layer = Callable[..., torch.Tensor]

TILE_CONTEXT = 8  # rows before a tile, in tiles, from which on their attention takes the most time


class Paused(Exception):  # noqa: N818 it is no error
    """A forward pass that has stopped before its end."""


class TiledForward:
    """T rows on their way through the layers; a `StepContext` for as long as it lasts.

    `context` attends each tile, also to `num_before` rows that were there before.
    """

    def __init__(
        self, rows: PackedRows, context: StepContext, tile_rows: int, num_before: int = 0
    ) -> None:
        self.rows = rows
        self._pause: Callable[[], bool] = lambda: False
        self._pad_to: Callable[[int], int] = lambda count: count
        self._context = context
        self._tile_rows = tile_rows
        self._num_before = num_before
        self._layer = self._row = 0
        self._hidden_1TE: torch.Tensor | None = None
        self._out_1TE: torch.Tensor | None = None
        self._fresh = True

    def begin(self, pause: Callable[[], bool], pad_to: Callable[[int], int]) -> None:
        """A forward pass begins, or begins again.

        `pause()` is asked before every tile but its first. Tiles of n rows are padded to
        `pad_to(n)`.
        """
        self._fresh, self._pause, self._pad_to = True, pause, pad_to

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """See `StepContext.attend`: of a tile."""
        return self._context.attend(rows)

    def run_layer(
        self, index: int, layer: Layer, hidden_1TE: torch.Tensor, arguments: dict[str, Any]
    ) -> torch.Tensor:
        """What layer `index` makes of all rows. Raises `Paused`."""
        if index < self._layer:
            return hidden_1TE
        if self._hidden_1TE is None or self._out_1TE is None:
            self._hidden_1TE, self._out_1TE = hidden_1TE, torch.empty_like(hidden_1TE)
        num_rows = hidden_1TE.shape[1]
        while self._row < num_rows:
            if not self._fresh and self._pause():
                raise Paused
            self._fresh = False
            size = tile_size(self._tile_rows, self._num_before + self._row)
            tile = slice(self._row, min(num_rows, self._row + size))
            self._out_1TE[:, tile] = self._run_tile(layer, tile, arguments, num_rows)
            self._row = tile.stop
        out_1TE, self._hidden_1TE, self._out_1TE = self._out_1TE, None, None
        self._layer, self._row = index + 1, 0
        return out_1TE

    def _run_tile(
        self, layer: Layer, tile: slice, arguments: dict[str, Any], num_rows: int
    ) -> torch.Tensor:
        assert self._hidden_1TE is not None
        count = tile.stop - tile.start
        more = self._pad_to(count) - count
        parts = {
            name: _part(value, tile, num_rows, more)
            for name, value in arguments.items()
            if name != "kv_context"
        }
        context = PaddedContext(self, count) if more else self
        hidden_1TE = F.pad(self._hidden_1TE[:, tile], (0, 0, 0, more))
        return layer(hidden_1TE, **parts, kv_context=context)[:, :count]


def tile_size(tile_rows: int, num_seen: int) -> int:
    """Rows of a tile that attends to `num_seen` rows before it: fewer where these take longer.

    By place and never by a clock, so that an answer does not depend on the load. Example: 512 up to
    4,096 rows, 256 up to 8,192, then 128.
    """
    size = tile_rows
    while size > max(1, tile_rows // 4) and size * num_seen > TILE_CONTEXT * tile_rows**2:
        size //= 2
    return size


class _HasLayers(Protocol):
    layers: Any


def wrap_layers(language_model: _HasLayers, progress: Progress) -> None:
    """Let each layer run in tiles where a pass asks for it, and say so. Idempotent."""
    for index, layer in enumerate(language_model.layers):
        if not hasattr(layer.forward, "in_tiles"):
            layer.forward = _wrapped(index, progress.marked("text", layer.forward))


def _wrapped(index: int, forward: Layer) -> Layer:
    @functools.wraps(forward)
    def run(hidden_states: torch.Tensor, *given: Any, **arguments: Any) -> torch.Tensor:
        context = arguments.get("kv_context")
        if isinstance(context, TiledForward):
            assert not given, "a layer is called by names"
            return context.run_layer(index, forward, hidden_states, arguments)
        return forward(hidden_states, *given, **arguments)

    run.in_tiles = True  # type: ignore[attr-defined]
    return run


def _part(value: Any, tile: slice, num_rows: int, more: int) -> Any:
    """A tile of an argument that has a row for each of `num_rows` tokens; others as they are.

    Cosines and sines are `[.., T, D]`, positions `[.., T]`.
    """
    if isinstance(value, tuple | list):
        return type(value)(_part(each, tile, num_rows, more) for each in value)
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if value.dim() > 1 and value.shape[-2] == num_rows:
        return F.pad(value[..., tile, :], (0, 0, 0, more))
    if value.shape[-1] == num_rows:
        return F.pad(value[..., tile], (0, more))
    return value
