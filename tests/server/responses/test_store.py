"""The store alone, under any sequence of uses: bounded, counted once, nothing of anybody else's."""

import random
from contextlib import suppress

import pytest

from server.api_errors import ApiError
from server.openai.response_store import ResponseStore, StoredResponse, Turn
from server.openai.schemas.input_items import InputMessage

MAX_BYTES = 60_000
OWNERS = ("alice", "bob")


def turn(owner: str, item_id: str, num_characters: int) -> Turn:
    text = "x" * num_characters
    return Turn.of(owner, [InputMessage(type="message", role="user", content=text, id=item_id)])


@pytest.mark.parametrize("seed", range(5))
def test_what_it_holds_is_bounded_and_is_what_it_has(seed: int) -> None:
    chance = random.Random(seed)
    store = ResponseStore(MAX_BYTES)
    known: dict[str, StoredResponse] = {}
    for step in range(300):
        owner = chance.choice(OWNERS)
        earlier: tuple[Turn, ...] = ()
        if known and chance.random() < 0.6:
            before = chance.choice(list(known.values()))
            with suppress(ApiError):
                earlier = store.get(before.id, owner).turns
                assert before.owner == owner
        own = turn(owner, f"msg_{chance.randrange(40)}", chance.randrange(9000))
        with store.holding((*earlier, own)) as fits:
            assert store.held_bytes <= MAX_BYTES
            if fits:
                assert store.item(str(own.items[0].id), owner, "input") is own.items[0]
        if fits:
            said = turn(owner, f"out_{step}", 50)
            stored = StoredResponse(f"resp_{step}", owner, (*earlier, own, said), b"{}")
            store.put(stored)
            known[stored.id] = stored
        if known and chance.random() < 0.2:
            gone = chance.choice(list(known.values()))
            try:
                store.delete(gone.id, gone.owner)
            except ApiError:
                assert gone.id not in store._stored
        check(store)


def check(store: ResponseStore) -> None:
    """Its sums are those of what is there, and so is its index."""
    stored = store._stored.values()
    turns = {each for one in stored for each in one.turns}
    bodies = sum(len(one.body) + 2**11 for one in stored)
    assert store.held_bytes == bodies + sum(each.num_bytes for each in turns) <= MAX_BYTES
    assert store._uses.keys() == turns
    indexed = {(key, one) for key, found in store._items.items() for one in found}
    assert indexed == {((one.owner, item.id), one) for one in turns for item in one.items}
    assert all(one.owner == each.owner for one in stored for each in one.turns)


def test_what_never_fits_takes_nobodys_place() -> None:
    store = ResponseStore(MAX_BYTES)
    store.put(StoredResponse("resp_1", "", (turn("", "a", 100), turn("", "b", 10)), b"{}"))
    with store.holding([turn("", "c", MAX_BYTES)]) as fits:
        assert not fits
    assert store.get("resp_1", "")
