"""Uploaded files, in memory, within a limit of bytes; each is seen by the API key it came with.

Where there is no room, files go: of the key that holds the most, the one that was not used for the
longest time. Who uploads little loses nothing to who uploads much. One event loop; knows nothing
about HTTP and nothing about what is in a file.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

OVERHEAD_BYTES = 4096  # counted beside a file's own: a million empty ones are not free


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One of them; `number` counts all that ever came.

    Times are in seconds since 1970; `expires_at` None: it does not expire.
    """

    id: str
    number: int
    filename: str = field(repr=False)
    purpose: str
    created_at: int
    expires_at: int | None
    data: bytes = field(repr=False)

    @property
    def held_bytes(self) -> int:
        """What it counts."""
        return len(self.data) + OVERHEAD_BYTES


Shelf = OrderedDict[str, StoredFile]  # of one owner, by id, the least recently used first


class FileStore:
    """At most `max_bytes` for all owners together. An owner is the digest of an API key, or ""."""

    def __init__(self, max_bytes: int, now_s: Callable[[], float] = time.time) -> None:
        self.max_bytes = max_bytes
        self._now_s = now_s
        self._shelves: dict[str, Shelf] = {}
        self._held: dict[str, int] = {}
        self._num_added = 0

    @property
    def held_bytes(self) -> int:
        """Of all of them."""
        return sum(self._held.values())

    def fits(self, num_bytes: int) -> bool:
        """Whether a file of so many bytes could be kept, if need be alone."""
        return num_bytes + OVERHEAD_BYTES <= self.max_bytes

    def add(
        self, owner: str, data: bytes, filename: str, purpose: str, lifetime_s: int | None = None
    ) -> StoredFile:
        """Keep a file that `fits`, and drop others for it."""
        assert self.fits(len(data)), "the caller has asked"
        self._drop_expired()
        created_at = int(self._now_s())
        expires_at = None if lifetime_s is None else created_at + lifetime_s
        self._num_added += 1
        added = StoredFile(
            id=f"file-{uuid.uuid4().hex}",
            number=self._num_added,
            filename=filename,
            purpose=purpose,
            created_at=created_at,
            expires_at=expires_at,
            data=data,
        )
        self._shelves.setdefault(owner, OrderedDict())[added.id] = added
        self._held[owner] = self._held.get(owner, 0) + added.held_bytes
        while self.held_bytes > self.max_bytes:
            others = [each for each, shelf in self._shelves.items() if len(shelf) > (each == owner)]
            largest = max(others, key=lambda each: self._held[each])
            self.delete(largest, next(iter(self._shelves[largest])))
        return added

    def get(self, owner: str, file_id: str) -> StoredFile | None:
        """The file, which is now the most recently used; None where this owner has none such."""
        shelf = self._shelves.get(owner, OrderedDict())
        found = shelf.get(file_id)
        if found is None or self._expired(found):
            return None
        shelf.move_to_end(file_id)
        return found

    def delete(self, owner: str, file_id: str) -> bool:
        """Drop it; whether it was there."""
        shelf = self._shelves.get(owner, OrderedDict())
        dropped = shelf.pop(file_id, None)
        if dropped is None:
            return False
        self._held[owner] -= dropped.held_bytes
        if not shelf:
            del self._shelves[owner], self._held[owner]
        return not self._expired(dropped)

    def listed(self, owner: str) -> list[StoredFile]:
        """All of this owner's, in the order in which they came."""
        shelf = self._shelves.get(owner, OrderedDict())
        found = [each for each in shelf.values() if not self._expired(each)]
        return sorted(found, key=lambda each: each.number)

    def _expired(self, file: StoredFile) -> bool:
        return file.expires_at is not None and file.expires_at <= self._now_s()

    def _drop_expired(self) -> None:
        shelves = list(self._shelves.items())
        for owner, shelf in shelves:
            for each in [file for file in shelf.values() if self._expired(file)]:
                self.delete(owner, each.id)
