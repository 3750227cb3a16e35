"""Responses that may be asked for again: in memory, within a bound, each for its API key alone.

What a response was made of is a chain of `Turn`s: what was sent, what was answered, what was sent
then. Responses that go on from one another share turns, which are counted once. Where there is no
room the least recently used responses go; a response that goes on from one that went keeps its own
chain. Knows bytes and owners; nothing about HTTP. For one event loop.
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
    """Items that were sent, or answered, together. `num_bytes` is about what they take."""

    items: tuple[Item, ...]
    num_bytes: int

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Turn":
        """Measured, which takes a while where there are many."""
        return cls(tuple(items), sum(_size_bytes(item.model_dump()) for item in items))


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
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._uses: Counter[Turn] = Counter()

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, response_id: str, owner: str, param: str | None = None) -> StoredResponse:
        """The response, which was used now. Raises `ApiError`; also for another key's."""
        found = self._stored.get(response_id)
        if found is None or found.owner != owner:
            message = (
                f"There is no stored response {response_id!r}: it was never stored, was deleted, "
                "or others took its place (--response-store-memory)."
            )
            raise ApiError("response_not_found", message, param=param)
        self._stored.move_to_end(response_id)
        return found

    def item(self, item_id: str, owner: str, param: str) -> Item:
        """An item of a stored response, by its own id. Raises `ApiError`."""
        for stored in reversed(self._stored.values()):
            if stored.owner == owner:
                for turn in stored.turns:
                    for item in turn.items:
                        if item.id == item_id:
                            return item
        raise ApiError(
            "response_not_found", f"No stored response has an item {item_id!r}.", param=param
        )

    def delete(self, response_id: str, owner: str) -> None:
        """Forget it. Raises `ApiError` where it is not there."""
        self._remove(self.get(response_id, owner))

    @contextlib.contextmanager
    def holding(self, turns: Sequence[Turn]) -> Iterator[bool]:
        """Room for what is being answered; whether there is."""
        self._take(turns)
        self._make_room()
        fits = self.held_bytes <= self._max_bytes
        if not fits:
            self._give_back(turns)
        try:
            yield fits
        finally:
            if fits:
                self._give_back(turns)

    def put(self, stored: StoredResponse) -> None:
        """Store it, as the one used last; unless it is too large to be stored at all."""
        if sum(turn.num_bytes for turn in stored.turns) + _body_bytes(stored) > self._max_bytes:
            return
        self._stored[stored.id] = stored
        self._take(stored.turns)
        self.held_bytes += _body_bytes(stored)
        self._make_room()

    def _make_room(self) -> None:
        while self.held_bytes > self._max_bytes and self._stored:
            self._remove(next(iter(self._stored.values())))

    def _remove(self, stored: StoredResponse) -> None:
        del self._stored[stored.id]
        self._give_back(stored.turns)
        self.held_bytes -= _body_bytes(stored)

    def _take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._uses[turn] += 1
            if self._uses[turn] == 1:
                self.held_bytes += turn.num_bytes

    def _give_back(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._uses[turn] -= 1
            if not self._uses[turn]:
                del self._uses[turn]
                self.held_bytes -= turn.num_bytes


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
