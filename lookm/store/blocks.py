"""Blocks of raw rows in host memory, by their chained keys; least recently used leaves go first.

    salt ── k0 ── k1 ── k2            a conversation; a second question about the same pictures
                   └─── k2' ── k3'    shares its beginning

A block's parent is the block before it, and outlives it: only leaves are dropped, so that whatever
is found is a prefix without a hole. What is in use is pinned. Snapshots of sums stand beside the
block at whose end they were taken. Knows bytes and keys; knows nothing about what rows mean.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lookm.store.digests import BLOCK_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Sums over the rows of a prefix of n tokens, for each layer that has any, float32 `[K, n]`."""

    sums_L: tuple[torch.Tensor | None, ...]
    squares_L: tuple[torch.Tensor | None, ...]

    def of(
        self, layer: int, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Sums and squares of a layer, on the device."""
        sums, squares = self.sums_L[layer], self.squares_L[layer]
        return (
            None if sums is None else sums.to(device),
            None if squares is None else squares.to(device),
        )

    @property
    def nbytes(self) -> int:
        parts = (*self.sums_L, *self.squares_L)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def has_squares(self) -> bool:
        return any(part is not None for part in self.squares_L)


@dataclass(slots=True, eq=False)
class _Block:
    """Rows `[L, 2, BLOCK_TOKENS, K, D]`, K then V: token by token, as a model makes them."""

    rows_L2NKD: torch.Tensor
    parent: bytes | None
    num_children: int = 0
    pins: int = 0
    snapshot: Snapshot | None = None

    @property
    def nbytes(self) -> int:
        return self.rows_L2NKD.nbytes + (self.snapshot.nbytes if self.snapshot else 0)


class Prefix:
    """A pinned beginning of a prompt, until it is released."""

    def __init__(self, blocks: list[_Block], snapshot: Snapshot | None) -> None:
        self.num_tokens = len(blocks) * BLOCK_TOKENS
        self.snapshot = snapshot
        self._blocks = blocks
        for block in blocks:
            block.pins += 1

    def read(
        self, layer: int, after_2NKD: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of one layer, `[K, n, D]` each, with the rows `after` them, on their device."""
        assert self._blocks, "a released prefix may be gone"
        parts = [block.rows_L2NKD[layer] for block in self._blocks]
        if after_2NKD is not None and after_2NKD.is_cuda:
            host_2NKD = torch.cat(parts, dim=1).pin_memory()
            parts = [host_2NKD.to(after_2NKD.device, non_blocking=True)]
        rows_2NKD = torch.cat(parts if after_2NKD is None else [*parts, after_2NKD], dim=1)
        return rows_2NKD[0].transpose(0, 1), rows_2NKD[1].transpose(0, 1)

    def release(self) -> None:
        """Unpin it. Idempotent."""
        for block in self._blocks:
            block.pins -= 1
        self._blocks = []


class PromptStore:
    """At most `max_bytes` of blocks. One owner drives it; 0 bytes hold nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.evictions = 0
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

    @property
    def enabled(self) -> bool:
        return self.max_bytes > 0

    def __len__(self) -> int:
        return len(self._blocks)

    def num_known(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are held."""
        for count, key in enumerate(keys):
            if key not in self._blocks:
                return count
        return len(keys)

    def find(
        self, keys: Sequence[bytes], max_tokens: int, *, sums: bool = False, squares: bool = False
    ) -> Prefix | None:
        """The longest held prefix of at most `max_tokens`, pinned; None where there is none.

        With `sums` (and `squares`) one at whose end such a snapshot was taken.
        """
        known = min(self.num_known(keys), max_tokens // BLOCK_TOKENS)
        snapshot = None
        while known and sums:
            snapshot = self._blocks[keys[known - 1]].snapshot
            if snapshot is not None and (snapshot.has_squares or not squares):
                break
            known, snapshot = known - 1, None
        if not known:
            return None
        for key in reversed(keys[:known]):  # the last block first: a leaf is older than its parents
            self._blocks.move_to_end(key)
        return Prefix([self._blocks[key] for key in keys[:known]], snapshot)

    def put(self, keys: Sequence[bytes], index: int, rows_L2NKD: torch.Tensor) -> bool:
        """Hold block `index` of a prompt; False where its parent is gone or there is no room."""
        key, parent = keys[index], keys[index - 1] if index else None
        if key in self._blocks:
            return True
        if parent is not None and parent not in self._blocks:
            return False
        size = rows_L2NKD.nbytes
        if parent is not None:
            self._blocks[parent].pins += 1  # room for a child is not made of its parent
        fits = self._make_room(size)
        if parent is not None:
            self._blocks[parent].pins -= 1
        if not fits:
            return False
        self._blocks[key] = _Block(rows_L2NKD, parent)
        self.held_bytes += size
        if parent is not None:
            self._blocks[parent].num_children += 1
        return True

    def put_snapshot(self, key: bytes, snapshot: Snapshot) -> None:
        """Hold sums at the end of a block that is held; a richer one takes a poorer one's place."""
        block = self._blocks.get(key)
        if block is None or (block.snapshot and block.snapshot.has_squares >= snapshot.has_squares):
            return
        block.pins += 1
        fits = self._make_room(snapshot.nbytes)
        block.pins -= 1
        if fits:
            self.held_bytes += snapshot.nbytes - (block.snapshot.nbytes if block.snapshot else 0)
            block.snapshot = snapshot

    def check(self) -> None:
        """Assert the invariants: bytes within the limit, no hole in a prefix, children counted."""
        assert self.held_bytes == sum(block.nbytes for block in self._blocks.values())
        assert self.held_bytes <= self.max_bytes
        children = dict.fromkeys(self._blocks, 0)
        for block in self._blocks.values():
            assert block.pins >= 0
            if block.parent is not None:
                assert block.parent in self._blocks, "a prefix with a hole"
                children[block.parent] += 1
        for key, block in self._blocks.items():
            assert block.num_children == children[key]

    @property
    def num_pins(self) -> int:
        """Pins of all blocks: 0 where no prompt is being prefilled."""
        return sum(block.pins for block in self._blocks.values())

    def _make_room(self, size: int) -> bool:
        """Drop least recently used leaves until `size` bytes more fit."""
        if size > self.max_bytes:
            return False
        while self.held_bytes + size > self.max_bytes:
            leaf = next(
                (k for k, b in self._blocks.items() if not b.num_children and not b.pins), None
            )
            if leaf is None:
                return False
            block = self._blocks.pop(leaf)
            self.held_bytes -= block.nbytes
            self.evictions += 1
            if block.parent is not None:
                self._blocks[block.parent].num_children -= 1
        return True
