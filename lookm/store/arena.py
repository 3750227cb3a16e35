"""Host memory for blocks, taken in chunks and never given back: a freed place is the next one's.

    chunk   [L, 2, C blocks, N tokens, K, D]       rows of layer l:  chunk[l, 0], chunk[l, 1]

A block takes a slot, one of a chunk's C. Slots in a row are tokens in a row: what a prompt computes
in a layer is copied in as few pieces as its slots have neighbours, most often one for K and one for
V. Memory is mapped in huge pages, for the first touch of a small one costs more than filling it,
and on a machine with a GPU it is pinned.
"""

import heapq
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

CHUNK_BLOCKS = 16


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One block's place: the number of its chunk, the place in it."""

    chunk: int
    index: int


@dataclass(slots=True)
class Arena:
    """At most `max_bytes` of slots, all of one shape: that of the first."""

    max_bytes: int
    pinned: bool = False
    allocated_bytes: int = 0
    _chunks: list[torch.Tensor] = field(default_factory=list)
    _free: list[Slot] = field(default_factory=list)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_slots(self) -> int:
        return sum(chunk.shape[2] for chunk in self._chunks)

    def take(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Slot | None:
        """A slot for rows of `shape` `[L, N, K, D]`, of any content; None where all are taken."""
        if not self._free and not self._grow(shape, dtype):
            return None
        return heapq.heappop(self._free)

    def give(self, slot: Slot) -> None:
        """Let another block have it."""
        heapq.heappush(self._free, slot)

    def runs(
        self, slots: Sequence[Slot], layer: int, start: int, count: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Tokens `start .. start + count` of the blocks in `slots`, in as few pieces as there are.

        Yields which of the `count` tokens, and where they are: `[2, tokens, K, D]`, K then V, each
        in one piece.
        """
        done = 0
        while done < count:
            at, offset = divmod(start + done, self._num_tokens)
            last = at
            while last + 1 < len(slots) and _follows(slots[last], slots[last + 1]):
                last += 1
            size = min((last + 1 - at) * self._num_tokens - offset, count - done)
            first = slots[at].index * self._num_tokens + offset
            rows_2TKD = self._chunks[slots[at].chunk][layer].flatten(1, 2)
            yield slice(done, done + size), rows_2TKD[:, first : first + size]
            done += size

    @property
    def num_layers(self) -> int:
        return self._chunks[0].shape[0]

    @property
    def row_shape(self) -> tuple[int, int]:
        """KV heads and head size."""
        return self._chunks[0].shape[4], self._chunks[0].shape[5]

    @property
    def dtype(self) -> torch.dtype:
        return self._chunks[0].dtype

    @property
    def _num_tokens(self) -> int:
        return self._chunks[0].shape[3]

    def _grow(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> bool:
        num_layers, *block = shape
        slot_bytes = 2 * prod(shape) * dtype.itemsize
        count = min(CHUNK_BLOCKS, (self.max_bytes - self.allocated_bytes) // slot_bytes)
        if count < 1:
            return False
        whole = (num_layers, 2, count, *block)
        self._chunks.append(_mapped(count * slot_bytes, dtype, self.pinned).view(whole))
        self.allocated_bytes += count * slot_bytes
        for index in range(count):
            self.give(Slot(len(self._chunks) - 1, index))
        return True


def _follows(slot: Slot, other: Slot) -> bool:
    return other.chunk == slot.chunk and other.index == slot.index + 1


def _mapped(size: int, dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    """`size` bytes of zeros that belong to the tensor."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    rows = torch.frombuffer(memory, dtype=dtype)
    if pinned:  # torch's own pinned memory comes in powers of two
        cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        failed = int(cuda.cudaHostRegister(rows.data_ptr(), size, 0))
        if failed:
            raise MemoryError(f"{size} bytes of host memory cannot be pinned: CUDA error {failed}")
    return rows
