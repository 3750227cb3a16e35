"""Rows to the store and back, on a GPU's path too: here with streams that do all at once."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lookm.store.arena import Arena, Slot
from lookm.store.transfer import MAX_PREFIXES, CudaTransfer, HostTransfer, Transfer

LAYERS, TOKENS, HEADS, SIZE = 3, 4, 2, 2


def noise(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V `[K, T, D]` as a model leaves them: parts of one tensor `[T, ...]`."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(tokens, 3, HEADS, SIZE, generator=generator)
    return both[:, 0].transpose(0, 1), both[:, 1].transpose(0, 1)


@pytest.fixture(params=["host", "cuda"])
def ends(request: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Arena, Transfer]:
    arena = Arena(2**20)
    if request.param == "host":
        return arena, HostTransfer(arena)
    stream = SimpleNamespace(
        wait_stream=lambda _: None,
        wait_event=lambda _: None,
        record_event=lambda: "event",
        synchronize=lambda: None,
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return arena, CudaTransfer(arena, torch.device("cpu"))


def taken(arena: Arena, count: int) -> list[Slot]:
    slots = [arena.take((LAYERS, TOKENS, HEADS, SIZE), torch.float32) for _ in range(count)]
    assert None not in slots
    return [slot for slot in slots if slot is not None]


def test_rows_come_back_whichever_slots_they_went_to(ends: tuple[Arena, Transfer]) -> None:
    arena, transfer = ends
    slots = taken(arena, 40)  # more than two chunks
    slots = [slots[i] for i in (5, 6, 7, 2, 31, 32, 33, 0, 1, 39)]
    rows = [noise(len(slots) * TOKENS, layer) for layer in range(LAYERS)]
    for start, end in ((0, 3), (3, 17), (17, 40)):
        for layer, (k, v) in enumerate(rows):
            transfer.save(slots, layer, start, k[:, start:end], v[:, start:end])
    transfer.wait()
    for layer, (k, v) in enumerate(rows):
        found = transfer.load(slots, layer, 40, 5)
        assert found.shape == (2, 45, HEADS, SIZE)
        assert torch.equal(found[0, :40].transpose(0, 1), k)
        assert torch.equal(found[1, :40].transpose(0, 1), v)


def test_prefixes_that_are_loaded_by_turns_do_not_disturb_each_other(
    ends: tuple[Arena, Transfer],
) -> None:
    arena, transfer = ends
    prefixes = [taken(arena, 2) for _ in range(MAX_PREFIXES + 3)]
    for seed, slots in enumerate(prefixes):
        for layer in range(LAYERS):
            transfer.save(slots, layer, 0, *noise(2 * TOKENS, 10 * seed + layer))
    for layer in range(LAYERS):
        for seed, slots in enumerate(prefixes):
            k, _ = noise(2 * TOKENS, 10 * seed + layer)
            assert torch.equal(transfer.load(slots, layer, 8, seed)[0, :8].transpose(0, 1), k)
    # A request that was aborted after its first layer, and then another with the same beginning.
    transfer.load(prefixes[0], 0, 8, 1)
    for layer in range(LAYERS):
        k, _ = noise(2 * TOKENS, layer)
        assert torch.equal(transfer.load(prefixes[0], layer, 8, 2)[0, :8].transpose(0, 1), k)


def test_neighbours_are_copied_in_one_piece() -> None:
    arena = Arena(2**20)
    slots = taken(arena, 16)
    assert [part for part, _ in arena.runs(slots, 0, 3, 50)] == [slice(0, 50)]
    other_way = [*slots[8:], *slots[:8]]
    assert [part.stop for part, _ in arena.runs(other_way, 0, 3, 50)] == [29, 50]


def test_an_arena_stays_within_its_bytes_and_gives_a_place_again() -> None:
    slot_bytes = 2 * LAYERS * TOKENS * HEADS * SIZE * 4
    arena = Arena(20 * slot_bytes + 5)
    slots = taken(arena, 20)
    assert arena.take((LAYERS, TOKENS, HEADS, SIZE), torch.float32) is None
    assert arena.allocated_bytes == 20 * slot_bytes
    arena.give(slots[7])
    assert arena.take((LAYERS, TOKENS, HEADS, SIZE), torch.float32) == slots[7]
