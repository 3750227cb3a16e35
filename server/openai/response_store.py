"""Responses that may be asked for again: in memory, within a bound, each for its API key alone.

What a response was made of is a chain of `Turn`s: what was sent, what was answered, what was sent
then. Responses that go on from one another share turns, which are counted once. Where there is no
room, responses of the key that holds the most go, the least recently used first; a response that
goes on from one that went keeps its own chain. Knows bytes and owners; nothing about HTTP. For one
event loop.
"""

import contextlib
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.api_errors import ApiError
from server.openai.schemas.input_items import Item

OVERHEAD_BYTES = 2**11  # of a stored response, beside its texts


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Items that `owner` sent, or got, together. `num_bytes` is about what they take."""

    owner: str
    items: tuple[Item, ...]
    num_bytes: int

    @classmethod
    def of(cls, owner: str, items: Sequence[Item]) -> "Turn":
        """Measured, which takes a while where there are many."""
        return cls(owner, tuple(items), sum(_size_bytes(item.model_dump()) for item in items))


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A finished response: what it was made of, what was answered (the last turn), and its JSON."""

    id: str
    owner: str
    turns: tuple[Turn, ...]
    body: bytes

    def input_items(self) -> Iterator[Item]:
        """What it was made of, in order."""
        return (item for turn in self.turns[:-1] for item in turn.items)


class ResponseStore:
    """At most `max_bytes` of responses, with those that are being answered."""

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._shelves: dict[str, OrderedDict[str, StoredResponse]] = {}  # by owner, then by id
        self._held: Counter[str] = Counter()  # bytes by owner
        self._uses: Counter[Turn] = Counter()
        self._answering: Counter[Turn] = Counter()  # of what is held, beside what is stored
        # By owner and id: each turn's item of that id, the newest turn's last.
        self._items: dict[tuple[str, str | None], dict[Turn, Item]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._shelves.values()))

    def get(self, response_id: str, owner: str, param: str | None = None) -> StoredResponse:
        """The response, which was used now. Raises `ApiError`; also for another key's."""
        shelf = self._shelves.get(owner, OrderedDict())
        found = shelf.get(response_id)
        if found is None:
            message = (
                f"There is no stored response {response_id!r}: it was never stored, was deleted, "
                "or others took its place (--response-store-memory)."
            )
            raise ApiError("response_not_found", message, param=param)
        shelf.move_to_end(response_id)
        return found

    def item(self, item_id: str, owner: str, param: str) -> Item:
        """An item of a stored response, by its own id. Raises `ApiError`."""
        if found := self._items.get((owner, item_id)):
            return found[next(reversed(found))]
        message = f"No stored response has an item {item_id!r}."
        raise ApiError("response_not_found", message, param=param)

    def delete(self, response_id: str, owner: str) -> None:
        """Forget it. Raises `ApiError` where it is not there."""
        self._remove(self.get(response_id, owner))

    @contextlib.contextmanager
    def holding(self, turns: Sequence[Turn]) -> Iterator[bool]:
        """Room for what is being answered; whether there is any beside what others hold."""
        if sum(turn.num_bytes for turn in {*self._answering, *turns}) > self._max_bytes:
            yield False
            return
        self._answering.update(turns)
        self._take(turns)
        self._make_room()
        try:
            yield True
        finally:
            self._answering.subtract(turns)
            self._answering += Counter()  # drops what is zero
            self._give_back(turns)

    def put(self, stored: StoredResponse) -> None:
        """Store it, as the one used last; unless it is too large to be stored at all."""
        if sum(turn.num_bytes for turn in stored.turns) + _body_bytes(stored) > self._max_bytes:
            return
        self._shelves.setdefault(stored.owner, OrderedDict())[stored.id] = stored
        self._take(stored.turns)
        self._count(stored.owner, _body_bytes(stored))
        self._make_room(stored.owner)

    def _make_room(self, newest: str | None = None) -> None:
        """`newest` is the owner of what was stored right now, which goes last."""
        while self.held_bytes > self._max_bytes and self._shelves:
            others = [
                each for each, shelf in self._shelves.items() if len(shelf) > (each == newest)
            ]
            largest = max(others or self._shelves, key=lambda each: self._held[each])
            self._remove(next(iter(self._shelves[largest].values())))

    def _remove(self, stored: StoredResponse) -> None:
        shelf = self._shelves[stored.owner]
        del shelf[stored.id]
        if not shelf:
            del self._shelves[stored.owner]
        self._give_back(stored.turns)
        self._count(stored.owner, -_body_bytes(stored))

    def _count(self, owner: str, num_bytes: int) -> None:
        """So many more are held; less, where they are negative."""
        self.held_bytes += num_bytes
        self._held[owner] += num_bytes
        if not self._held[owner]:
            del self._held[owner]

    def _take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._uses[turn] += 1
            if self._uses[turn] == 1:
                self._count(turn.owner, turn.num_bytes)
                for item in turn.items:
                    self._items.setdefault((turn.owner, item.id), {})[turn] = item

    def _give_back(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._uses[turn] -= 1
            if not self._uses[turn]:
                del self._uses[turn]
                self._count(turn.owner, -turn.num_bytes)
                for key in {(turn.owner, item.id) for item in turn.items}:
                    del self._items[key][turn]
                    if not self._items[key]:
                        del self._items[key]


def _body_bytes(stored: StoredResponse) -> int:
    return len(stored.body) + OVERHEAD_BYTES


def _size_bytes(value: Any) -> int:
    """Of a JSON value in memory."""
    if isinstance(value, dict):
        inside = sum(_size_bytes(each) for each in value.values())
    elif isinstance(value, list):
        inside = sum(map(_size_bytes, value))
    else:
        inside = 0
    return sys.getsizeof(value) + inside
