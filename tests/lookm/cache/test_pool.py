"""The page pool and a sequence's tables: pages owned once, rows where they belong."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookm.cache import DecodeTables, PagePool, SequenceCache
from lookm.errors import ConfigError
from lookm.pages import PageLayout, pages_for

LAYERS, HEADS, SIZE, DIM = 2, 3, 4, 5


def pool(num_pages: int = 16, dtype: torch.dtype = torch.float32) -> Any:
    return PagePool(num_pages, PageLayout(HEADS, SIZE, DIM, dtype))


def rows(count: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, HEADS, count, DIM, generator=generator)
    return k, v


def filled(pages: Any, counts: Any, seed: int = 0) -> Any:
    cache = SequenceCache(pages, LAYERS)
    cache.reserve(np.array(counts))
    stored = [rows(count, seed + layer) for layer, count in enumerate(counts)]
    for layer, (k, v) in enumerate(stored):
        cache.append(layer, k, v)
    return cache, stored


def test_rows_come_back_in_order_from_every_layer() -> None:
    cache, stored = filled(pool(), [9, 3])
    for layer, (k, v) in enumerate(stored):
        got_k, got_v = cache.gather(layer)
        assert torch.equal(got_k, k)
        assert torch.equal(got_v, v)


def test_appending_in_pieces_equals_appending_at_once() -> None:
    pages = pool()
    cache = SequenceCache(pages, LAYERS)
    cache.reserve(np.array([11, 11]))
    k, v = rows(11)
    for start, end in ((0, 3), (3, 4), (4, 10), (10, 11)):
        cache.append(0, k[:, start:end], v[:, start:end])
    assert torch.equal(cache.gather(0)[0], k)
    assert torch.equal(cache.gather(0)[1], v)


def test_two_sequences_do_not_touch_each_other() -> None:
    pages = pool()
    first, stored = filled(pages, [5, 6], seed=1)
    filled(pages, [7, 2], seed=9)
    for layer, (k, _) in enumerate(stored):
        assert torch.equal(first.gather(layer)[0], k)


def test_missing_pages_counts_what_reserve_takes() -> None:
    pages = pool()
    cache, _ = filled(pages, [4, 5])
    before = pages.num_free
    wanted = np.array([5, 8])
    missing = cache.missing_pages(wanted)
    cache.reserve(wanted)
    assert missing == 1 == before - pages.num_free


def test_trim_gives_back_the_pages_that_no_row_needs_and_keeps_the_rows() -> None:
    pages = pool()
    cache, stored = filled(pages, [9, 3])  # 3 and 1 pages of 4 rows
    cache.reserve(np.array([16, 9]))
    cache.trim(np.array([9, 40]))
    assert [len(held) for held in cache.pages] == [3, 3]
    cache.trim(cache.kept_L)
    assert [len(held) for held in cache.pages] == [3, 1]
    assert cache.num_pages == 4 == pages.num_pages - pages.num_free
    pages.check(cache.pages)
    for layer, (k, _) in enumerate(stored):
        assert torch.equal(cache.gather(layer)[0], k)
    cache.reserve(np.array([16, 3]))
    assert cache.table_LM[0, :4].tolist() == cache.pages[0]


def test_release_returns_every_page_and_the_cache_can_be_filled_again() -> None:
    pages = pool()
    cache, _ = filled(pages, [9, 9])
    cache.release()
    assert pages.num_free == pages.num_pages
    assert cache.bytes == 0
    pages.check([cache.pages[0], cache.pages[1]])
    cache.reserve(np.array([1, 1]))
    cache.append(0, *rows(1))
    assert cache.kept_L.tolist() == [1, 0]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30))
def test_no_page_is_ever_owned_twice_or_lost(actions: Any) -> None:
    pages, caches = pool(12), []
    for grow, number in actions:
        if grow:
            cache = SequenceCache(pages, LAYERS)
            wanted = np.array([number, number // 2])
            if cache.missing_pages(wanted) <= pages.num_free:
                cache.reserve(wanted)
                caches.append(cache)
        elif caches:
            caches.pop(number % len(caches)).release()
        pages.check([layer for cache in caches for layer in cache.pages])


def test_decode_tables_say_where_the_next_row_goes() -> None:
    pages = pool()
    caches = [filled(pages, counts)[0] for counts in ([3, 8], [5, 1])]
    for cache in caches:
        cache.reserve(cache.kept_L + 1)
    tables = DecodeTables(caches, SIZE, pages.device)
    assert tables.kept_LB.tolist() == [[3, 5], [8, 1]]
    assert tables.slot_LB.tolist() == [[3, 1], [0, 1]]
    for layer in range(LAYERS):
        for b, cache in enumerate(caches):
            owned = cache.pages[layer]
            assert tables.table_LBM[layer, b, : len(owned)].tolist() == owned
            assert tables.page_LB[layer, b] == owned[int(cache.kept_L[layer]) // SIZE]


def test_bytes_are_keys_and_values_of_whole_pages() -> None:
    assert PageLayout(HEADS, SIZE, DIM, torch.bfloat16).page_bytes == 2 * HEADS * SIZE * DIM * 2
    assert [pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    pages = pool()
    cache, _ = filled(pages, [5, 4])
    assert cache.bytes == 3 * pages.page_bytes


def test_a_pool_without_a_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="single page"):
        pool(0)
