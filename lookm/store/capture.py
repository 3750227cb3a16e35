"""Raw rows of one prompt on their way into the store, layer by layer, as they are prefilled.

Blocks are found by others only when all their layers are complete (`commit`), so a prompt that is
aborted or preempted leaves nothing half-written. Knows rows and blocks; knows no attention.
"""

from collections.abc import Sequence

import torch

from lookm.store.blocks import PromptStore, Snapshot
from lookm.store.digests import BLOCK_TOKENS


class Capture:
    """The blocks of a prompt from token `start` on, a multiple of the block, as yet unseen."""

    def __init__(
        self, store: PromptStore, keys: Sequence[bytes], start: int, num_layers: int
    ) -> None:
        assert start % BLOCK_TOKENS == 0, start
        self._store = store
        self._keys = keys
        self._num_layers = num_layers
        self._first = start // BLOCK_TOKENS
        self._blocks: list[torch.Tensor] = []
        self._snapshots: dict[int, list[tuple[torch.Tensor | None, torch.Tensor | None]]] = {}

    def write(self, layer: int, start: int, k_KTD: torch.Tensor, v_KTD: torch.Tensor) -> None:
        """Rows of tokens `start ..` of one layer, but those of the last, unfilled block."""
        end = min(start + k_KTD.shape[1], len(self._keys) * BLOCK_TOKENS)
        at = max(start, self._first * BLOCK_TOKENS)
        while at < end:
            block, offset = divmod(at - self._first * BLOCK_TOKENS, BLOCK_TOKENS)
            while block >= len(self._blocks):
                shape = (self._num_layers, 2, BLOCK_TOKENS, k_KTD.shape[0], k_KTD.shape[2])
                self._blocks.append(torch.empty(shape, dtype=k_KTD.dtype))
            size = min(BLOCK_TOKENS - offset, end - at)
            rows = slice(at - start, at - start + size)
            to_2NKD = self._blocks[block][layer, :, offset : offset + size]
            to_2NKD[0].copy_(k_KTD[:, rows].transpose(0, 1))
            to_2NKD[1].copy_(v_KTD[:, rows].transpose(0, 1))
            at += size

    def snapshot(
        self, num_tokens: int, sums_KT: torch.Tensor | None, squares_KT: torch.Tensor | None
    ) -> None:
        """The next layer's sums over the first `num_tokens`, a multiple of the block."""
        host = [part.cpu() if part is not None else None for part in (sums_KT, squares_KT)]
        self._snapshots.setdefault(num_tokens, []).append((host[0], host[1]))

    def commit(self, num_tokens: int) -> None:
        """The first `num_tokens` are there in all layers: let others find what is complete."""
        full = min(num_tokens // BLOCK_TOKENS, len(self._keys)) - self._first
        while full > 0 and self._blocks:
            if not self._store.put(self._keys, self._first, self._blocks[0]):
                self._keys = self._keys[: self._first]  # no room: what follows has no parent
                self._blocks.clear()
                break
            del self._blocks[0]
            self._first += 1
            full -= 1
        for end, layers in self._snapshots.items():
            if end // BLOCK_TOKENS <= self._first:
                sums, squares = zip(*layers, strict=True)
                self._store.put_snapshot(
                    self._keys[end // BLOCK_TOKENS - 1], Snapshot(sums, squares)
                )
        self._snapshots = {
            end: layers
            for end, layers in self._snapshots.items()
            if end // BLOCK_TOKENS > self._first
        }
