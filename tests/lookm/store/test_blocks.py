"""The prompt store: prefixes without holes, within its bytes, and nothing half-written."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookm.store import BLOCK_TOKENS, Capture, Prefix, PromptStore, block_keys
from lookm.types import ImageInput

LAYERS, HEADS, SIZE = 2, 2, 4
BLOCK_BYTES = LAYERS * 2 * HEADS * BLOCK_TOKENS * SIZE * 4


def keys_of(ids: list[int], salt: str = "") -> list[bytes]:
    return block_keys(ids, (), 3, salt)


def rows(layer: int, first: int, count: int) -> torch.Tensor:
    """Rows that say which token and layer they are of."""
    token_T = torch.arange(first, first + count).float()
    return (1000 * layer + token_T)[None, :, None].expand(HEADS, -1, SIZE)


def captured(store: PromptStore, ids: list[int], *, start: int = 0, step: int = 50) -> Capture:
    """A prompt that is prefilled in chunks of `step`."""
    capture = Capture(store, keys_of(ids), start, LAYERS)
    for first in range(start, len(ids), step):
        count = min(step, len(ids) - first)
        for layer in range(LAYERS):
            capture.write(layer, first, rows(layer, first, count), -rows(layer, first, count))
        capture.commit(first + count)
    capture.close()
    return capture


def whole(prefix: Prefix, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    k_TKD, v_TKD = prefix.load(layer, 0)
    return k_TKD.transpose(0, 1), v_TKD.transpose(0, 1)


def test_what_was_captured_comes_back_row_for_row() -> None:
    store, ids = PromptStore(2**20), [7] * 200
    captured(store, ids)
    prefix = store.find(keys_of(ids), len(ids))
    assert prefix is not None
    assert prefix.num_tokens == 192
    for layer in range(LAYERS):
        k, v = whole(prefix, layer)
        assert torch.equal(k, rows(layer, 0, 192))
        assert torch.equal(v, -rows(layer, 0, 192))
    prefix.release()
    prefix.release()
    assert store.num_pins == 0


def test_a_prompt_is_found_as_far_as_it_is_the_same() -> None:
    store, ids = PromptStore(2**20), list(range(5, 205))
    captured(store, ids)
    for at, found in ((0, 0), (63, 0), (64, 1), (130, 2), (199, 3)):
        changed = [*ids[:at], 4, *ids[at + 1 :]]
        assert store.num_known(keys_of(changed)) == found
    assert store.num_known(keys_of(ids, "salt")) == 0


def test_a_layer_that_is_missing_keeps_a_block_from_being_found() -> None:
    store, ids = PromptStore(2**20), [7] * 128
    capture = Capture(store, keys_of(ids), 0, LAYERS)
    capture.write(0, 0, rows(0, 0, 128), rows(0, 0, 128))
    assert store.num_known(keys_of(ids)) == 0
    assert store.num_pins == 2
    capture.close()  # aborted: it was never committed
    assert store.held_bytes == store.num_pins == 0
    store.check()


def test_other_pictures_in_the_same_places_are_other_blocks() -> None:
    ids = [1, *[3] * 90, 2, *[3] * 90, *[9] * 20]
    images = [ImageInput(digest, {}, 90) for digest in "abc"]
    same = block_keys(ids, images[:2], 3)
    other = block_keys(ids, (images[0], images[2]), 3)
    assert same[0] == other[0]
    assert same[1] != other[1]


def test_a_pinned_prefix_is_never_dropped() -> None:
    store, ids = PromptStore(4 * BLOCK_BYTES), [7] * 128
    captured(store, ids)
    prefix = store.find(keys_of(ids), 128)
    assert prefix is not None
    captured(store, [8] * 192)
    store.check()
    assert store.num_known(keys_of(ids)) == 2
    assert torch.equal(whole(prefix, 0)[0], rows(0, 0, 128))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), blocks=st.integers(0, 9))
def test_any_use_leaves_prefixes_whole_and_bytes_within_the_limit(seed: int, blocks: int) -> None:
    rng = random.Random(seed)
    store = PromptStore(blocks * BLOCK_BYTES + rng.randrange(BLOCK_BYTES))
    roots = [[n] * 64 for n in range(3)]
    pinned = []
    for _ in range(30):
        ids = [*rng.choice(roots), *[rng.randrange(3) + 5 for _ in range(3) for _ in range(50)]]
        keys = keys_of(ids)
        found = store.find(keys, len(ids))
        start = found.num_tokens if found else 0
        if found is not None:
            assert torch.equal(whole(found, 1)[0], rows(1, 0, start))
            pinned.append(found)
        captured(store, ids, start=start, step=rng.choice([17, 64, 500]))
        store.check()
        while pinned and rng.random() < 0.6:
            pinned.pop(rng.randrange(len(pinned))).release()
    for prefix in pinned:
        prefix.release()
    store.check()
    assert store.num_pins == 0
