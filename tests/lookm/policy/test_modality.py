"""AirCache's and MadaKV's budgets, against the papers' formulas in plain Python and by hand."""

from typing import Any

import pytest
import torch

from lookm import CachePolicy, compress
from lookm.policy.modality import (
    by_strength_and_skew,
    carried,
    demand,
    strength_and_skew,
    text_preference,
)
from lookm.policy.view import View
from tests.lookm.policy import oracle
from tests.lookm.policy.layers import layer

ROWS = layer(num_tokens=90, images=((4, 30), (45, 80)), heads=4, kv_heads=2, seed=5)


def view_of(rows: Any, **more: Any) -> Any:
    weights = oracle.attention(rows.q_HTD, rows.k_KTD)
    window_KT = weights[:, :, -32:].sum((1, 2))
    size = rows.k_KTD.shape[2]
    return View(
        rows.k_KTD.double(),
        rows.v_KTD.double(),
        rows.is_image_T,
        rows.q_HTD.double(),
        size**-0.5,
        window_KT=window_KT,
        **more,
    )


def tensors(*numbers: Any) -> Any:
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


def test_strength_and_skewness_are_those_of_the_elites_attention_to_images() -> None:
    weights = oracle.attention(ROWS.q_HTD, ROWS.k_KTD)
    heads = oracle.all_scores("aircache", ROWS, weights)
    images = ROWS.is_image_T.nonzero().flatten().tolist()
    mean = [(heads[0][j] + heads[1][j]) / 2 for j in images]
    expected = [sum(mean), max(0.0, oracle.skewness(mean)), 90 - len(images)]
    torch.testing.assert_close(strength_and_skew(view_of(ROWS)), tensors(expected)[0])


def test_few_or_equal_image_tokens_have_no_skewness() -> None:
    few = layer(num_tokens=20, images=((4, 6),))
    assert strength_and_skew(view_of(few))[1] == 0
    equal = layer(num_tokens=40, images=((4, 24),))
    equal.k_KTD[:, 4:24] = 0.0
    assert strength_and_skew(view_of(equal))[1] == pytest.approx(0, abs=1e-6)


def test_images_get_the_mean_of_strength_and_skewness_over_their_means() -> None:
    # of 100 rows 20 are text; strength 3 of a mean of 2, skewness 1 of a mean of 4
    measures = tensors((1.0, 7.0, 20.0), (3.0, 1.0, 20.0))
    assert by_strength_and_skew(measures, 100) == pytest.approx(20 + (1.5 + 0.25) / 2 * 80)
    assert by_strength_and_skew(measures[:1], 100) == 100
    assert by_strength_and_skew(tensors((0.0, 0.0, 20.0)), 100) == 100
    assert by_strength_and_skew(tensors((1.0, 1.0, 500.0)), 100) == 100


def test_heads_demand_the_fewest_tokens_of_each_modality() -> None:
    weights = oracle.attention(ROWS.q_HTD, ROWS.k_KTD)
    numbers = [oracle.needed(oracle.psi(weights[head]), ROWS.is_image_T) for head in (0, 1)]
    found = demand(view_of(ROWS, num_layers=7))
    assert found.tolist() == [sum(numbers) / 2, 7]
    only_text = layer(num_tokens=50, images=())
    weights = oracle.attention(only_text.q_HTD, only_text.k_KTD)
    numbers = [oracle.needed(oracle.psi(weights[head]), only_text.is_image_T) for head in range(2)]
    assert demand(view_of(only_text))[0] == sum(numbers) / 2


def test_what_a_layer_leaves_or_takes_is_shared_by_those_after_it() -> None:
    # N = 100, 3 layers: 80 leaves 20 for two, so phi is 110; 130 takes 20 of the last one's 110
    asked = tensors((80.0, 3.0), (130.0, 3.0), (90.0, 3.0))
    assert [carried(asked[: n + 1], 100) for n in range(3)] == [80, 130, 90]
    assert carried(tensors((500.0, 3.0)), 100) == 150
    assert carried(tensors((500.0, 3.0), (500.0, 3.0)), 100) == 1.5 * 75
    assert carried(tensors((1.0, 3.0)), 100) == 50


@pytest.mark.parametrize("keep_tokens", [16, 40, 60])
def test_each_head_divides_its_rows_by_what_its_proxies_look_at(keep_tokens: Any) -> None:
    policy = CachePolicy("madakv", keep_tokens=keep_tokens)
    got = compress(*ROWS, policy)
    share_K1 = text_preference(view_of(ROWS))
    for head, positions in enumerate(got.positions.tolist()):
        num_text = sum(not ROWS.is_image_T[j] for j in positions)
        expected = min(round(float(share_K1[head]) * keep_tokens), int((~ROWS.is_image_T).sum()))
        assert num_text == expected


def test_text_without_images_is_all_that_a_head_prefers() -> None:
    assert float(text_preference(view_of(layer(images=()))).min()) > 0.999


def test_alike_keys_make_mixkv_choose_unlike_ones() -> None:
    """In a head whose keys are nearly equal, the odd one is kept whatever attention says."""
    rows = layer(num_tokens=80, images=((0, 40),), seed=1)
    rows.k_KTD[:] = rows.k_KTD[:, :1] + 0.01 * rows.k_KTD
    rows.k_KTD[:, 7] = -rows.k_KTD[:, 7]
    rows.v_KTD[:] = rows.v_KTD[:, :1]
    kept = compress(*rows, CachePolicy("mixkv", keep_tokens=36)).positions
    assert all(7 in head for head in kept.tolist())
