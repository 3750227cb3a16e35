"""Blocks of raw rows in host memory, by their chained keys; least recently used leaves go first.

    salt ── k0 ── k1 ── k2            a conversation; a second question about the same pictures
                   └─── k2' ── k3'    shares its beginning

A block's parent is the block before it, and outlives it: only leaves are dropped, so that whatever
is found is a prefix without a hole. What is in use is pinned. Snapshots of sums are found by the
block at whose end they were taken. Knows bytes and keys; knows nothing about what rows mean.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from lookm.store.arena import Arena, Slot
from lookm.store.digests import BLOCK_TOKENS
from lookm.store.transfer import Transfer, transfer_for

SNAPSHOT_SHARE = 1 / 16  # of the store's bytes
#: Parts of snapshots (`Needs.stored`) that are of the rows after the prefix' last image alone.
OF_WINDOWS = frozenset(("window", "dense", "visible"))


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Sums over the rows of a prefix of n tokens, by what they are of, each `[L, ...]` of L layers
    that have any. Most are float32 `[L, K, n]`."""

    parts: Mapping[str, torch.Tensor]

    def to(self, device: torch.device | str) -> "Snapshot":
        return Snapshot({name: part.to(device) for name, part in self.parts.items()})

    def only(self, names: Set[str]) -> "Snapshot":
        """These parts alone."""
        return Snapshot({name: part for name, part in self.parts.items() if name in names})

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


@dataclass(slots=True, eq=False)
class _Block:
    slot: Slot
    parent: bytes | None
    num_children: int = 0
    pins: int = 0


class Prefix:
    """A pinned beginning of a prompt, until it is released. `snapshot` is on the device."""

    def __init__(self, blocks: list[_Block], snapshot: Snapshot | None, transfer: Transfer) -> None:
        self.num_tokens = len(blocks) * BLOCK_TOKENS
        self.snapshot = snapshot
        self._blocks = blocks
        self._transfer = transfer
        for block in blocks:
            block.pins += 1

    def load(self, layer: int, more: int) -> torch.Tensor:
        """A layer's rows, `[2, n + more, K, D]`, K then V, with room for `more` behind them."""
        assert self._blocks, "a released prefix may be gone"
        slots = [block.slot for block in self._blocks]
        return self._transfer.load(slots, layer, self.num_tokens, more)

    def release(self) -> None:
        """Unpin it. Idempotent."""
        for block in self._blocks:
            block.pins -= 1
        self._blocks = []


class PromptStore:
    """At most `max_bytes` of host memory, for prompts computed on `device`. One owner drives it.

    Slots are handed out before they are filled, and count from then on; 0 bytes hold nothing.
    """

    def __init__(self, max_bytes: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.max_bytes = max_bytes
        self.evictions = 0
        self._device = device
        self._max_snapshot_bytes = int(max_bytes * SNAPSHOT_SHARE)
        self._arena = Arena(max_bytes - self._max_snapshot_bytes, pinned=device.type == "cuda")
        self._transfer = transfer_for(self._arena, device)
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._snapshots: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._snapshot_bytes = 0
        self._num_open = 0

    @property
    def enabled(self) -> bool:
        return self.max_bytes > 0

    @property
    def transfer(self) -> Transfer:
        return self._transfer

    @property
    def held_bytes(self) -> int:
        """What can be found: blocks and snapshots."""
        slots = self._arena.num_slots
        block_bytes = self._arena.allocated_bytes // slots if slots else 0
        return len(self._blocks) * block_bytes + self._snapshot_bytes

    @property
    def allocated_bytes(self) -> int:
        """What the process holds for it."""
        return self._arena.allocated_bytes + self._snapshot_bytes

    def __len__(self) -> int:
        return len(self._blocks)

    def num_known(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are held."""
        for count, key in enumerate(keys):
            if key not in self._blocks:
                return count
        return len(keys)

    def find(
        self, keys: Sequence[bytes], max_tokens: int, names: Set[str] = frozenset()
    ) -> Prefix | None:
        """The longest held prefix of at most `max_tokens`, pinned; None where there is none.

        With `names` one at whose end a snapshot with these parts was taken; the prefix has them.
        """
        known = min(self.num_known(keys), max_tokens // BLOCK_TOKENS)
        snapshot = None
        while known and names:
            snapshot = self._snapshots.get(keys[known - 1])
            if snapshot is not None and names <= snapshot.parts.keys():
                self._snapshots.move_to_end(keys[known - 1])
                break
            known, snapshot = known - 1, None
        if not known:
            return None
        for key in reversed(keys[:known]):  # the last block first: a leaf is older than its parents
            self._blocks.move_to_end(key)
        return Prefix(
            [self._blocks[key] for key in keys[:known]],
            snapshot.only(names).to(self._device) if snapshot is not None else None,
            self._transfer,
        )

    def open(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, parent: bytes | None
    ) -> Slot | None:
        """A slot to fill for a block that will come after `parent`; least recently used leaves go.

        `shape` is `[L, N, K, D]`. None where all else is in use. Ends in `put` or `close`.
        """
        if not self.enabled:
            return None
        before = self._blocks.get(parent) if parent is not None else None
        if before is not None:
            before.pins += 1  # room for a child is not made of its parents
        slot = self._arena.take(shape, dtype)
        while slot is None and self._drop_leaf():
            slot = self._arena.take(shape, dtype)
        if before is not None:
            before.pins -= 1
        self._num_open += slot is not None
        return slot

    def close(self, slot: Slot) -> None:
        """Give up a slot that was not filled."""
        self._num_open -= 1
        self._arena.give(slot)

    def put(self, keys: Sequence[bytes], index: int, slot: Slot) -> bool:
        """Hold block `index` of a prompt, filled in all layers; False where its parent is gone.

        The slot is the store's from here on.
        """
        key, parent = keys[index], keys[index - 1] if index else None
        if key in self._blocks or (parent is not None and parent not in self._blocks):
            self.close(slot)
            return key in self._blocks
        self._num_open -= 1
        self._blocks[key] = _Block(slot, parent)
        if parent is not None:
            self._blocks[parent].num_children += 1
        return True

    def put_snapshot(self, key: bytes, snapshot: Snapshot) -> None:
        """Hold sums at the end of a block that is held, beside those of other kinds.

        Snapshots that were not looked at for longest go for it.
        """
        held = self._snapshots.get(key)
        known = held.parts if held else {}
        if key not in self._blocks or snapshot.parts.keys() <= known.keys():
            return
        together = Snapshot({**snapshot.to("cpu").parts, **known})
        self._drop_snapshot(key)
        if together.nbytes > self._max_snapshot_bytes:
            return
        while self._snapshot_bytes + together.nbytes > self._max_snapshot_bytes:
            self._drop_snapshot(next(iter(self._snapshots)))
        self._snapshots[key] = together
        self._snapshot_bytes += together.nbytes

    def check(self) -> None:
        """Assert the invariants: bytes within the limit, no hole in a prefix, children counted."""
        assert self.allocated_bytes <= self.max_bytes
        assert self._snapshot_bytes == sum(each.nbytes for each in self._snapshots.values())
        assert self._snapshots.keys() <= self._blocks.keys()
        assert self._arena.num_slots == (
            self._arena.num_free + len(self._blocks) + self._num_open
        ), "a slot that nobody has"
        slots = [block.slot for block in self._blocks.values()]
        assert len(set(slots)) == len(slots), "a slot that two blocks have"
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
        """Pins of all blocks, and slots being filled: 0 where no prompt is being prefilled."""
        return sum(block.pins for block in self._blocks.values()) + self._num_open

    def _drop_leaf(self) -> bool:
        """Forget the least recently used leaf that is not in use."""
        key = next((k for k, b in self._blocks.items() if not b.num_children and not b.pins), None)
        if key is None:
            return False
        block = self._blocks.pop(key)
        self._drop_snapshot(key)
        self._arena.give(block.slot)
        self.evictions += 1
        if block.parent is not None:
            self._blocks[block.parent].num_children -= 1
        return True

    def _drop_snapshot(self, key: bytes) -> None:
        snapshot = self._snapshots.pop(key, None)
        if snapshot is not None:
            self._snapshot_bytes -= snapshot.nbytes
