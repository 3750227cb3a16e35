"""Raw rows of one prompt on their way into the store, layer by layer, as they are prefilled.

Blocks are found by others only when all their layers are complete (`commit`), so a prompt that is
aborted or preempted leaves nothing half-written. Knows rows and blocks; knows no attention.
"""

from collections.abc import Mapping, Sequence

import torch

from lookm.store.arena import Slot
from lookm.store.blocks import PromptStore, Snapshot
from lookm.store.digests import BLOCK_TOKENS


class Capture:
    """The blocks of a prompt from token `start` on, a multiple of the block. To be closed."""

    def __init__(
        self, store: PromptStore, keys: Sequence[bytes], start: int, num_layers: int
    ) -> None:
        assert start % BLOCK_TOKENS == 0, start
        self._store = store
        self._keys = keys
        self._num_layers = num_layers
        self.start = start
        self._first = start // BLOCK_TOKENS
        self._slots: list[Slot] = []
        self._snapshots: dict[int, list[Mapping[str, torch.Tensor]]] = {}

    @property
    def num_blocks(self) -> int:
        """Of the prompt, from its first, that will be held when it is done: room may be short."""
        return len(self._keys)

    def write(self, layer: int, start: int, k_KTD: torch.Tensor, v_KTD: torch.Tensor) -> None:
        """Rows of tokens `start ..` of one layer, but those of the last, unfilled block."""
        first = self._first * BLOCK_TOKENS
        self._open(min(start + k_KTD.shape[1], len(self._keys) * BLOCK_TOKENS), k_KTD)
        end = min(start + k_KTD.shape[1], first + len(self._slots) * BLOCK_TOKENS)
        at = max(start, first)
        if at < end:
            rows = slice(at - start, end - start)
            transfer = self._store.transfer
            transfer.save(self._slots, layer, at - first, k_KTD[:, rows], v_KTD[:, rows])

    def snapshot(self, num_tokens: int, parts: Mapping[str, torch.Tensor]) -> None:
        """The next layer's sums over the first `num_tokens`, a multiple of the block, by name."""
        self._snapshots.setdefault(num_tokens, []).append(parts)

    def commit(self, num_tokens: int) -> None:
        """The first `num_tokens` are there in all layers: let others find what is complete."""
        full = min(num_tokens // BLOCK_TOKENS - self._first, len(self._slots))
        if full > 0:
            self._store.transfer.wait()
        for _ in range(full):
            if not self._store.put(self._keys, self._first, self._slots.pop(0)):
                self._end()
                break
            self._first += 1
        for end in [end for end in self._snapshots if end // BLOCK_TOKENS <= self._first]:
            layers = self._snapshots.pop(end)
            parts = {name: torch.stack([each[name] for each in layers]) for name in layers[0]}
            self._store.put_snapshot(self._keys[end // BLOCK_TOKENS - 1], Snapshot(parts))

    def close(self) -> None:
        """Give up what is not complete. Idempotent."""
        while self._slots:
            self._store.close(self._slots.pop())

    def _open(self, end: int, like_KTD: torch.Tensor) -> None:
        """Slots up to token `end`, as far as there is room."""
        num_heads, _, size = like_KTD.shape
        shape = (self._num_layers, BLOCK_TOKENS, num_heads, size)
        parent = self._keys[self._first - 1] if self._first else None
        while (self._first + len(self._slots)) * BLOCK_TOKENS < end:
            slot = self._store.open(shape, like_KTD.dtype, parent)
            if slot is None:
                self._keys = self._keys[: self._first + len(self._slots)]
                break
            self._slots.append(slot)

    def _end(self) -> None:
        """What follows has no parent: no more of this prompt."""
        self._keys = self._keys[: self._first]
        self.close()
