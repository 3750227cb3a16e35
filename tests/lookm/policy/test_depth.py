"""Budgets over depth: by hand, and what must hold of any rule on any prompt."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookm import CachePolicy, compress
from lookm.policy import PRESETS, max_rows, nominal_rows, open_ledger, resolve
from lookm.policy.budgets import Budget
from lookm.policy.depth import (
    Adaptive,
    Ledger,
    Range,
    cross_modal_entropy,
    density,
    even_first,
    limits_of,
    prefix,
    priority_curve,
    proportional,
    pyramid,
    softmax,
    unevenness,
)
from lookm.policy.view import View
from tests.lookm.policy.layers import layer

DEEP = sorted(method for method in PRESETS if PRESETS[method].depth is not None)
ADAPTIVE = sorted(m for m in DEEP if isinstance(PRESETS[m].depth, Adaptive))


def tensors(*numbers: Any) -> Any:
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


def view_of(**statistics: Any) -> Any:
    rows = torch.ones(2, 4, 3)
    return View(rows, rows, torch.zeros(4, dtype=torch.bool), **statistics)


def test_the_presets_with_a_depth_rule() -> None:
    published = ["aircache", "d2o", "look-m-plus", "madakv", "meda", "prefixkv"]
    assert [*published, "pyramidkv", "vl-cache"] == DEEP
    assert [*published, "vl-cache"] == ADAPTIVE


def test_a_pyramid_falls_linearly_from_nearly_double_to_a_twentieth() -> None:
    # N = 132 with a window of 32: 100 above it, of which the last layer keeps 100/20 = 5
    assert pyramid(Range(0, 132, 1000), 32, 5) == [227, 179, 132, 85, 37]
    assert pyramid(Range(0, 132, 1000), 32, 1) == [132]
    assert pyramid(Range(0, 132, 142), 32, 3) == [142, 132, 122]  # no layer holds more than 142
    assert pyramid(Range(120, 132, 1000), 32, 3) == [144, 132, 120]  # 120 of text, everywhere
    assert pyramid(Range(0, 20, 1000), 32, 3) == [20, 20, 20]  # nothing above the window


def test_proportional_shares_follow_the_mean_so_far() -> None:
    assert proportional(tensors(0.2), 100) == 100
    assert proportional(tensors(0.2, 0.6), 100) == pytest.approx(150)
    assert proportional(tensors(0.2, 0.6, 0.1), 100) == pytest.approx(100 * 0.1 / 0.3)
    assert proportional(tensors(0.0, 0.0), 100) == 100


def test_softmax_shares_are_those_of_the_layers_so_far() -> None:
    assert softmax(tensors(7.0), 100) == pytest.approx(100)
    e = 2.718281828459045
    assert softmax(tensors(1.0, 2.0), 100) == pytest.approx(200 * e / (1 + e))


def test_even_layers_come_first_by_variances_scaled_to_the_largest() -> None:
    assert even_first(tensors(7.0), 100) == pytest.approx(100)
    assert even_first(tensors(0.0, 0.0), 100) == pytest.approx(100)
    e = 2.718281828459045
    assert even_first(tensors(8.0, 2.0), 100) == pytest.approx(200 / (1 + e**-0.75))


def test_prefix_keeps_the_same_mass_in_every_layer_seen() -> None:
    steep, flat = tensors([0.7, 0.9, 0.95, 1.0], [0.25, 0.5, 0.75, 1.0])
    assert prefix([steep], 2) == 2
    # at mass p in (0.5, 0.7] the flat layer needs 3 tokens and the steep one 1: 2 on average
    assert prefix([steep, flat], 2) == 3
    assert prefix([flat, steep], 2) == 1


def test_measures_by_hand() -> None:
    assert density(view_of(density_K=torch.tensor([0.2, 0.4]))) == pytest.approx(0.3)
    assert cross_modal_entropy(view_of(entropy_K=torch.tensor([1.0, 2.0]))) == pytest.approx(1.5)
    sums_KT = torch.tensor([[4.0, 2.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    curve = priority_curve(view_of(sums_KT=sums_KT))  # masses 6, 4, 3, 3
    torch.testing.assert_close(curve, torch.tensor([6, 10, 13, 16]).double() / 16)
    assert unevenness(view_of(sums_KT=sums_KT)) == pytest.approx(1.0)  # variances 2 and 0


def asked(*wanted: Any) -> Any:
    """A rule whose layers want these numbers."""
    numbers = iter(wanted)
    return Adaptive(lambda view: torch.zeros(()), lambda measures, nominal: next(numbers))


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ((100, 100, 100, 100), [100, 100, 100, 100]),
        ((120, 130, 80, 0), [120, 130, 80, 70]),  # the last layer takes what is left
        ((1000, 1000, 1000, 1000), [150, 150, 50, 50]),  # each within a half and one and a half
        ((0, 0, 0, 0), [50, 50, 150, 150]),
        ((60.4, 100, 140.6, 0), [60, 100, 141, 99]),
    ],
)
def test_a_ledger_gives_what_is_wanted_within_limits_and_spends_exactly_the_total(
    wanted: Any, given: Any
) -> None:
    ledger = Ledger(asked(*wanted), Budget(100, 7), Range(50, 100, 150), window=0, num_layers=4)
    budgets = [ledger.next(view_of()) for _ in range(4)]
    assert [budget.important for budget in budgets] == given
    assert {budget.recent for budget in budgets} == {7}
    with pytest.raises(AssertionError, match="every layer"):
        ledger.next(view_of())


def test_limits_keep_protected_text_and_drop_at_least_one_token() -> None:
    rule = asked()
    assert limits_of(rule, Budget(100, 10), 0, 1000) == Range(50, 100, 150)
    assert limits_of(rule, Budget(100, 10), 80, 1000) == Range(80, 100, 150)
    assert limits_of(rule, Budget(100, 10), 0, 120) == Range(50, 100, 109)
    assert limits_of(rule, Budget(1, 0), 0, 50) == Range(1, 1, 1)
    assert limits_of(pyramid, Budget(100, 10), 0, 1000) == Range(0, 100, 989)
    assert limits_of(pyramid, Budget(100, 0), 0, 1000) == Range(1, 100, 999)
    assert limits_of(None, Budget(100, 10), 5, 1000) == Range(100, 100, 100)


policies = st.builds(
    CachePolicy,
    method=st.sampled_from(DEEP),
    keep=st.floats(0.01, 0.99),
    recent=st.sampled_from([None, 0.0, 0.3, 1.0]),
    text=st.sampled_from([None, "protect", "prior", "none"]),
)


@settings(max_examples=60, deadline=None)
@given(
    policy=policies,
    image_bits=st.lists(st.booleans(), min_size=3, max_size=40),
    num_layers=st.integers(1, 5),
)
def test_over_all_layers_exactly_the_nominal_total_is_kept_and_no_layer_exceeds_its_bound(
    policy: Any, image_bits: Any, num_layers: Any
) -> None:
    is_image_T, recipe = torch.tensor(image_bits), resolve(policy)
    nominal = nominal_rows(recipe, is_image_T)
    bounds = max_rows(recipe, is_image_T, num_layers)
    ledger = open_ledger(recipe, is_image_T, num_layers)
    kept = []
    for index in range(num_layers):
        rows = layer(num_tokens=len(image_bits), head_size=4, seed=index, images=())
        got = compress(
            *rows[:3], is_image_T, policy, layer=index, num_layers=num_layers, ledger=ledger
        )
        kept.append(got.positions.shape[1])
        assert kept[-1] + got.num_evicted == len(image_bits)
    assert sum(kept) == nominal * num_layers
    assert all(1 <= rows <= bound for rows, bound in zip(kept, bounds, strict=True))
    assert set(bounds) == {len(image_bits)} or max(bounds) < len(image_bits)
    if policy.method == "pyramidkv":
        assert kept == bounds


@pytest.mark.parametrize("method", ADAPTIVE)
def test_layers_of_different_attention_get_different_budgets(method: Any) -> None:
    recipe = resolve(CachePolicy(method, keep=0.6))
    layers = [layer(heads=4, kv_heads=4, seed=index) for index in range(4)]
    ledger = open_ledger(recipe, layers[0].is_image_T, 4)
    kept = []
    for index, rows in enumerate(layers):  # sharper and sharper attention
        q_HTD = rows.q_HTD * torch.tensor([3.0**index, 1, 1, 1])[:, None, None]
        got = compress(q_HTD, *rows[1:], recipe.policy, layer=index, num_layers=4, ledger=ledger)
        kept.append(got.positions.shape[1])
    assert len(set(kept)) > 1
    assert sum(kept) == 4 * nominal_rows(recipe, layers[0].is_image_T)
