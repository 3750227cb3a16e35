"""Merging: where rows go, what stays untouched, precision and memory."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lookm.attention import choose
from lookm.attention.kernels.build import missing_tools
from lookm.policy import merges
from lookm.policy.merges import MERGES, Rows, merge, nearest_by_cosine


def rows(
    num: Any, *, seed: Any, heads: int = 2, size: int = 8, dtype: torch.dtype = torch.float32
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, heads, num, size, generator=generator).to(dtype)
    return Rows(key, value, torch.zeros(heads, num, dtype=torch.bool))


def all_text(key: Any, value: Any) -> Any:
    return Rows(key, value, torch.zeros(key.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize(("how", "expected"), [("average", 2.0), ("pivot", 2.5), ("weighted", 2.0)])
def test_one_row_into_one_follows_the_formula(how: Any, expected: Any) -> None:
    kept = all_text(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 3.0]]]))
    evicted = all_text(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.ones(1, 2, 2))
    got, *_ = merge(kept, evicted, MERGES[how])
    # average (3+1+2)/3, pivot (3*2 + 3/2)/3, weighted as average: both cosines are 1
    torch.testing.assert_close(got.key, torch.tensor([[[expected, 0.0]]]))
    value = {"average": 5 / 3, "pivot": (3 * 2 + 1) / 3, "weighted": 5 / 3}[how]
    torch.testing.assert_close(got.value, torch.full((1, 1, 2), value))


def test_weighted_uses_the_cosine_of_keys_for_values_too() -> None:
    kept = all_text(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]]))
    evicted = all_text(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[10.0, 20.0]]]))
    got, *_ = merge(kept, evicted, MERGES["weighted"])
    torch.testing.assert_close(got.value, torch.tensor([[[3.0, 6.0]]]))  # 0.6 * e / 2


def test_similarity_in_tiles_equals_similarity_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, evicted = rows(13, seed=1), rows(101, seed=2)
    whole = nearest_by_cosine(kept.key, evicted.key)
    monkeypatch.setattr(merges, "MAX_TILE_ELEMENTS", 2 * 13 * 7)
    target_KE, cosine_KE = nearest_by_cosine(kept.key, evicted.key)
    assert torch.equal(target_KE, whole[0])
    torch.testing.assert_close(cosine_KE, whole[1])


def test_a_row_nothing_merges_into_is_untouched_bit_for_bit() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        kept, evicted = rows(30, seed=3, dtype=dtype), rows(5, seed=4, dtype=dtype)
        target_KE, _ = nearest_by_cosine(kept.key, evicted.key)
        got, *_ = merge(kept, evicted, MERGES["pivot"])
        for head in range(2):
            lonely = torch.ones(30, dtype=torch.bool)
            lonely[target_KE[head]] = False
            assert 25 <= int(lonely.sum()) < 30
            assert torch.equal(got.key[head][lonely], kept.key[head][lonely])
            assert not torch.equal(got.key[head][~lonely], kept.key[head][~lonely])


def test_half_precision_is_rounded_once_not_per_merged_row() -> None:
    """A thousand rows into one: summed in bfloat16 the total would stop growing at 256."""
    kept = all_text(torch.ones(1, 1, 4).bfloat16(), torch.ones(1, 1, 4).bfloat16())
    evicted = all_text(torch.ones(1, 1000, 4).bfloat16(), torch.full((1, 1000, 4), 3.0).bfloat16())
    got, *_ = merge(kept, evicted, MERGES["average"])
    assert got.value.dtype == torch.bfloat16
    assert got.value.float().unique().tolist() == [3.0]


def test_a_key_of_length_zero_merges_without_nan() -> None:
    kept = rows(3, seed=5)
    evicted = all_text(torch.zeros(2, 2, 8), torch.ones(2, 2, 8))
    for how in ("average", "pivot", "weighted"):
        got, *_ = merge(kept, evicted, MERGES[how])
        assert got.key.isfinite().all()
        assert got.value.isfinite().all()


def test_a_centroid_is_as_long_as_its_members_are_on_average() -> None:
    """Two evicted keys at right angles to each other, around the kept one, of other lengths."""
    kept = all_text(torch.tensor([[[2.0, 0.0, 0.0]]]), torch.tensor([[[3.0, 0.0, 0.0]]]))
    evicted = all_text(
        torch.tensor([[[3.0, 3.0, 0.0], [3.0, -3.0, 0.0]]]),
        torch.tensor([[[0.0, 3, 0], [0, 0, 3]]]),
    )
    got, num_merged, _ = merge(kept, evicted, MERGES["centroid"])
    torch.testing.assert_close(got.key, torch.tensor([[[(2 + 2 * 18**0.5) / 3, 0.0, 0.0]]]))
    torch.testing.assert_close(got.value, torch.ones(1, 1, 3))
    assert num_merged == 2


def test_a_centroid_takes_neither_the_other_modality_nor_what_points_away() -> None:
    key, value = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2, 2)
    kept = Rows(key, value, torch.tensor([[True, False]]))
    evicted_key = torch.tensor([[[2.0, 0.5], [-1.0, 0.5], [-1.0, 0.0], [1.0, 5.0]]])
    is_image = torch.tensor([[True, True, True, False]])
    evicted = Rows(evicted_key, torch.ones(1, 4, 2), is_image)
    got, num_merged, _ = merge(kept, evicted, MERGES["centroid"])
    # the first merges into the image row, the last into the text row, the others into none
    assert num_merged == 2
    torch.testing.assert_close(got.value, torch.full((1, 2, 2), 0.5))


def test_targets_are_chosen_again_among_centroids() -> None:
    """An evicted key nearer to one kept key can be nearer to the cluster around another."""
    turn = [0.0, 90.0, 80.0, 85.0, 70.0, 44.0, 46.0]  # degrees; the first two are kept
    key = torch.tensor([[[math.cos(math.radians(x)), math.sin(math.radians(x))] for x in turn]])
    value = torch.arange(7.0)[None, :, None].expand(1, 7, 2)
    kept, evicted = all_text(key[:, :2], value[:, :2]), all_text(key[:, 2:], value[:, 2:])
    assert nearest_by_cosine(kept.key, evicted.key)[0].tolist() == [[1, 1, 1, 0, 1]]
    got, *_ = merge(kept, evicted, MERGES["centroid"])
    # the clusters of the first round point to 22 and about 74 degrees: 46 goes over to the first
    torch.testing.assert_close(got.value[0, :, 0], torch.tensor([(0 + 5 + 6) / 3, 10 / 4]))


@pytest.mark.skipif(bool(missing_tools()), reason=f"missing: {missing_tools()}")
def test_centroids_by_the_kernels_are_as_near_to_float64_as_bfloat16_allows() -> None:
    kernels, generator = choose("cpu", "cpu").merges, torch.Generator().manual_seed(7)

    def both_kinds(num: Any) -> Any:
        key, value = (torch.randn(2, 3, num, 64, generator=generator) + 0.5).bfloat16()
        return Rows(key, value, torch.rand(3, num, generator=generator) < 0.7)

    def double(rows: Any) -> Any:
        return Rows(rows.key.double(), rows.value.double(), rows.is_image)

    kept, evicted = both_kinds(40), both_kinds(200)
    rule = replace(MERGES["centroid"], again=False)  # a second look can turn on a rounding
    got, num_merged, _ = merge(kept, evicted, rule, kernels)
    exact, expected, _ = merge(double(kept), double(evicted), rule)
    assert num_merged == expected > 150
    torch.testing.assert_close(got.key.double(), exact.key, rtol=0.02, atol=0.02)
    torch.testing.assert_close(got.value.double(), exact.value, rtol=0.02, atol=0.02)
