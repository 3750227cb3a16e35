"""Rows on their way between the device and the store's memory.

On a CPU they are copied. On a GPU copies have streams of their own: rows leave while the next layer
computes, and come a layer ahead of the one that reads them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lookm.store.arena import Arena, Slot

MAX_PREFIXES = 8  # that are loaded ahead, a layer each


class Transfer(Protocol):
    """Saves rows into slots and loads them. K and V are `[K, T, D]`, of any strides."""

    def save(
        self,
        slots: Sequence[Slot],
        layer: int,
        start: int,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
    ) -> None:
        """Rows of a layer into tokens `start ..` of the slots' blocks. There after `wait`."""

    def wait(self) -> None:
        """Return when all that was saved is there."""

    def load(self, slots: Sequence[Slot], layer: int, count: int, more: int) -> torch.Tensor:
        """The first `count` tokens of a layer, `[2, count + more, K, D]`; `more` rows are left to
        the caller to fill. Valid until the next but one is loaded.
        """


class HostTransfer:
    """Both sides are host memory."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def save(
        self,
        slots: Sequence[Slot],
        layer: int,
        start: int,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
    ) -> None:
        for part, rows_2TKD in self._arena.runs(slots, layer, start, k_KTD.shape[1]):
            rows_2TKD[0].copy_(k_KTD[:, part].transpose(0, 1))
            rows_2TKD[1].copy_(v_KTD[:, part].transpose(0, 1))

    def wait(self) -> None:
        return

    def load(self, slots: Sequence[Slot], layer: int, count: int, more: int) -> torch.Tensor:
        out_2TKD = torch.empty((2, count + more, *self._arena.row_shape), dtype=self._arena.dtype)
        for part, rows_2TKD in self._arena.runs(slots, layer, 0, count):
            out_2TKD[:, part] = rows_2TKD
        return out_2TKD


@dataclass(frozen=True, slots=True, eq=False)
class _Coming:
    """A layer on its way to the device."""

    layer: int
    rows_2TKD: torch.Tensor
    there: torch.cuda.Event


class CudaTransfer:
    """The device's side is a GPU. Of each direction two layers are under way at most."""

    def __init__(self, arena: Arena, device: torch.device) -> None:
        self._arena = arena
        self._device = device
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._in = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._leaving: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._coming: dict[tuple[Slot, ...], _Coming] = {}

    def save(
        self,
        slots: Sequence[Slot],
        layer: int,
        start: int,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
    ) -> None:
        main = torch.cuda.current_stream(self._device)
        if len(self._leaving) == 2:  # its memory may be used again when it has left
            main.wait_event(self._leaving.popleft()[0])
        rows_2TKD = torch.stack((k_KTD.transpose(0, 1), v_KTD.transpose(0, 1)))
        self._out.wait_stream(main)
        with torch.cuda.stream(self._out):
            for part, to_2TKD in self._arena.runs(slots, layer, start, k_KTD.shape[1]):
                for to_TKD, of_TKD in zip(to_2TKD, rows_2TKD, strict=True):
                    to_TKD.copy_(of_TKD[part], non_blocking=True)
            self._leaving.append((self._out.record_event(), rows_2TKD))

    def wait(self) -> None:
        self._out.synchronize()
        self._leaving.clear()

    def load(self, slots: Sequence[Slot], layer: int, count: int, more: int) -> torch.Tensor:
        """The next layer is asked for as well: it comes while this one computes."""
        main, prefix = torch.cuda.current_stream(self._device), tuple(slots)
        found = self._coming.pop(prefix, None)
        if found is not None and (found.layer, found.rows_2TKD.shape[1]) != (layer, count + more):
            main.wait_event(found.there)  # only then its memory is free: it was another request's
            found = None
        found = found or self._begin(slots, layer, count, more)
        if layer + 1 < self._arena.num_layers:
            self._coming[prefix] = self._begin(slots, layer + 1, count, more)
            if len(self._coming) > MAX_PREFIXES:  # whose request was aborted
                main.wait_event(self._coming.pop(next(iter(self._coming))).there)
        main.wait_event(found.there)
        return found.rows_2TKD

    def _begin(self, slots: Sequence[Slot], layer: int, count: int, more: int) -> _Coming:
        shape, dtype = self._arena.row_shape, self._arena.dtype
        rows_2TKD = torch.empty((2, count + more, *shape), dtype=dtype, device=self._device)
        # Whoever had this memory before is done with it.
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._in):
            for part, of_2TKD in self._arena.runs(slots, layer, 0, count):
                for to_TKD, of_TKD in zip(rows_2TKD, of_2TKD, strict=True):
                    to_TKD[part].copy_(of_TKD, non_blocking=True)
            return _Coming(layer, rows_2TKD, self._in.record_event())


def transfer_for(arena: Arena, device: torch.device) -> Transfer:
    """What moves rows between `device` and the arena."""
    return CudaTransfer(arena, device) if device.type == "cuda" else HostTransfer(arena)
