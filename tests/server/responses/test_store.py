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
                assert gone.id not in store._shelves.get(gone.owner, {})
        check(store)


def check(store: ResponseStore) -> None:
    """Its sums are those of what is there, and so is its index."""
    stored = [one for shelf in store._shelves.values() for one in shelf.values()]
    assert len(store) == len(stored)
    turns = {each for one in stored for each in one.turns}
    bodies = sum(len(one.body) + 2**11 for one in stored)
    assert store.held_bytes == bodies + sum(each.num_bytes for each in turns) <= MAX_BYTES
    assert store._uses.keys() == turns
    assert store.held_bytes == sum(store._held.values())
    for owner in OWNERS:
        own = [one for one in stored if one.owner == owner]
        bodies = sum(len(one.body) + 2**11 for one in own)
        assert store._held[owner] == bodies + sum(
            each.num_bytes for each in turns if each.owner == owner
        )
    indexed = {(key, one) for key, found in store._items.items() for one in found}
    assert indexed == {((one.owner, item.id), one) for one in turns for item in one.items}
    assert all(one.owner == each.owner for one in stored for each in one.turns)


def test_what_never_fits_takes_nobodys_place() -> None:
    store = ResponseStore(MAX_BYTES)
    store.put(StoredResponse("resp_1", "", (turn("", "a", 100), turn("", "b", 10)), b"{}"))
    with store.holding([turn("", "c", MAX_BYTES)]) as fits:
        assert not fits
    assert store.get("resp_1", "")


def put(store: ResponseStore, owner: str, name: str, num_characters: int) -> None:
    turns = (turn(owner, f"in_{name}", num_characters), turn(owner, f"out_{name}", 10))
    store.put(StoredResponse(name, owner, turns, b"{}"))


def has(store: ResponseStore, owner: str, name: str) -> bool:
    with suppress(ApiError):
        return bool(store.get(name, owner))
    return False


def test_a_key_that_stores_much_loses_its_own_responses_not_anothers() -> None:
    store = ResponseStore(MAX_BYTES)
    put(store, "alice", "a", 1000)
    for n in range(100):
        put(store, "bob", f"b{n}", 1000)
    check(store)
    assert has(store, "alice", "a")
    assert has(store, "bob", "b99")
    assert not has(store, "bob", "b0")
    assert not has(store, "bob", "a")


def test_what_was_stored_right_now_takes_others_places_however_large() -> None:
    store = ResponseStore(MAX_BYTES)
    for n in range(5):
        put(store, "alice", f"a{n}", 3000)
    put(store, "bob", "b", 45_000)
    check(store)
    assert has(store, "bob", "b")
    assert not has(store, "alice", "a0")
