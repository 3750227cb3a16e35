"""Merging: where rows go, what stays untouched, precision and memory."""

import pytest
import torch

from lookm.policy import merges
from lookm.policy.merges import MERGES, Rows, merge, nearest_by_cosine


def rows(num, *, seed, heads=2, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, heads, num, size, generator=generator).to(dtype)
    return Rows(key, value)


@pytest.mark.parametrize(("how", "expected"), [("average", 2.0), ("pivot", 2.5), ("weighted", 2.0)])
def test_one_row_into_one_follows_the_formula(how, expected):
    kept = Rows(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 3.0]]]))
    evicted = Rows(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.ones(1, 2, 2))
    got, _ = merge(kept, evicted, MERGES[how])
    # average (3+1+2)/3, pivot (3*2 + 3/2)/3, weighted as average: both cosines are 1
    torch.testing.assert_close(got.key, torch.tensor([[[expected, 0.0]]]))
    value = {"average": 5 / 3, "pivot": (3 * 2 + 1) / 3, "weighted": 5 / 3}[how]
    torch.testing.assert_close(got.value, torch.full((1, 1, 2), value))


def test_weighted_uses_the_cosine_of_keys_for_values_too():
    kept = Rows(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]]))
    evicted = Rows(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[10.0, 20.0]]]))
    got, _ = merge(kept, evicted, MERGES["weighted"])
    torch.testing.assert_close(got.value, torch.tensor([[[3.0, 6.0]]]))  # 0.6 * e / 2


def test_similarity_in_tiles_equals_similarity_at_once(monkeypatch):
    kept, evicted = rows(13, seed=1), rows(101, seed=2)
    whole = nearest_by_cosine(kept.key, evicted.key)
    monkeypatch.setattr(merges, "MAX_TILE_ELEMENTS", 2 * 13 * 7)
    target_KE, cosine_KE = nearest_by_cosine(kept.key, evicted.key)
    assert torch.equal(target_KE, whole[0])
    torch.testing.assert_close(cosine_KE, whole[1])


def test_a_row_nothing_merges_into_is_untouched_bit_for_bit():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        kept, evicted = rows(30, seed=3, dtype=dtype), rows(5, seed=4, dtype=dtype)
        target_KE, _ = nearest_by_cosine(kept.key, evicted.key)
        got, _ = merge(kept, evicted, MERGES["pivot"])
        for head in range(2):
            lonely = torch.ones(30, dtype=torch.bool)
            lonely[target_KE[head]] = False
            assert 25 <= int(lonely.sum()) < 30
            assert torch.equal(got.key[head][lonely], kept.key[head][lonely])
            assert not torch.equal(got.key[head][~lonely], kept.key[head][~lonely])


def test_half_precision_is_rounded_once_not_per_merged_row():
    """A thousand rows into one: summed in bfloat16 the total would stop growing at 256."""
    kept = Rows(torch.ones(1, 1, 4).bfloat16(), torch.ones(1, 1, 4).bfloat16())
    evicted = Rows(torch.ones(1, 1000, 4).bfloat16(), torch.full((1, 1000, 4), 3.0).bfloat16())
    got, _ = merge(kept, evicted, MERGES["average"])
    assert got.value.dtype == torch.bfloat16
    assert got.value.float().unique().tolist() == [3.0]


def test_a_key_of_length_zero_merges_without_nan():
    kept = rows(3, seed=5)
    evicted = Rows(torch.zeros(2, 2, 8), torch.ones(2, 2, 8))
    for how in ("average", "pivot", "weighted"):
        got, _ = merge(kept, evicted, MERGES[how])
        assert got.key.isfinite().all()
        assert got.value.isfinite().all()
