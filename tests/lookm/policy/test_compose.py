"""Every preset, merge and text mode against the slow oracle, and what must hold of any policy."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookm import CachePolicy, compress
from lookm.policy import PRESETS, Budget, nominal_rows, resolve
from lookm.policy.compose import select
from lookm.policy.scores import best, column_sum, lexicographic
from lookm.policy.view import View
from tests.lookm.policy import oracle
from tests.lookm.policy.layers import layer

METHODS = sorted(set(PRESETS) - {"full"})
SCORED = [method for method in METHODS if method != "random"]
PROTECTS = sorted(oracle.PROTECTS)
AWARE = [*PROTECTS, *oracle.ABOUT_IMAGES]
MERGES = ["none", "average", "pivot", "weighted"]
TEXTS = ["protect", "prior", "none"]


def check_against_oracle(policy: Any, rows: Any) -> Any:
    """Positions equal, keys and values to 1e-5, untouched rows bit for bit."""
    got = compress(*rows, policy)
    weights = oracle.attention(rows.q_HTD, rows.k_KTD)
    method = policy.method
    text = policy.text or ("protect" if method in PROTECTS else "none")
    merge = policy.merge or oracle.MERGE_OF.get(method, "none")
    budget = oracle.counts(
        method, len(rows.is_image_T), policy.keep, policy.keep_tokens, policy.recent
    )
    scores = oracle.all_scores(method, rows, weights)
    num_merged = 0
    for head in range(rows.k_KTD.shape[0]):
        positions = oracle.kept(method, text, scores[head], rows.is_image_T.tolist(), *budget)
        assert got.positions[head].tolist() == positions
        if merge == "centroid":
            key, value, received = oracle.centroids(
                rows.k_KTD[head], rows.v_KTD[head], rows.is_image_T.tolist(), positions
            )
        else:
            key, value, received = oracle.merged(
                rows.k_KTD[head], rows.v_KTD[head], positions, merge
            )
        torch.testing.assert_close(got.key[head].double(), key, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.value[head].double(), value, rtol=1e-5, atol=1e-5)
        untouched = torch.tensor(received) == 0
        torch.testing.assert_close(
            got.key[head][untouched],
            rows.k_KTD[head][positions][untouched],
            **({} if merge == "threshold" else {"rtol": 0, "atol": 0}),
        )
        num_merged += sum(received) / rows.k_KTD.shape[0]
    assert got.num_evicted == len(rows.is_image_T) - len(positions) > 0
    assert got.num_merged == round(num_merged)
    if merge not in ("threshold", "centroid"):
        assert got.num_merged == (got.num_evicted if merge != "none" else 0)
    assert got.compressed
    return got


@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(2, 2, 16), (4, 2, 7), (6, 1, 5)])
@pytest.mark.parametrize("method", SCORED)
def test_every_preset_equals_the_oracle(
    method: Any, heads: Any, kv_heads: Any, head_size: Any
) -> None:
    rows = layer(heads=heads, kv_heads=kv_heads, head_size=head_size, seed=heads)
    check_against_oracle(CachePolicy(method, keep=0.3), rows)
    check_against_oracle(CachePolicy(method, keep_tokens=47, recent=0.9), rows)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("method", SCORED)
def test_every_merge_and_text_mode_on_every_score_equals_the_oracle(
    method: Any, merge: Any, text: Any
) -> None:
    rows = layer(num_tokens=60, images=((5, 20), (30, 55)), seed=3)
    check_against_oracle(CachePolicy(method, keep_tokens=21, merge=merge, text=text), rows)


@pytest.mark.parametrize("method", PROTECTS)
def test_text_beyond_the_budget_is_all_kept_and_still_equals_the_oracle(method: Any) -> None:
    rows = layer(num_tokens=80, images=((20, 40),), seed=4)
    got = check_against_oracle(CachePolicy(method, keep=0.1), rows)
    text = set((~rows.is_image_T).nonzero().flatten().tolist())
    assert all(text <= set(kept) for kept in got.positions.tolist())


def test_protect_keeps_every_text_token_even_under_streaming() -> None:
    rows = layer(num_tokens=50, images=((0, 10), (30, 40)))
    check_against_oracle(CachePolicy("streaming", keep_tokens=6, text="protect"), rows)


def test_streaming_keeps_four_sinks_and_the_last_tokens() -> None:
    kept = compress(*layer(num_tokens=50), CachePolicy("streaming", keep_tokens=10)).positions
    assert kept.tolist() == [[0, 1, 2, 3, *range(44, 50)]] * 2


def test_a_streaming_budget_below_the_sinks_still_keeps_the_last_token() -> None:
    for tokens in (1, 2, 4):
        policy = CachePolicy("streaming", keep_tokens=tokens)
        kept = compress(*layer(num_tokens=50), policy).positions
        assert kept.tolist() == [[*range(tokens - 1), 49]] * 2


def test_random_differs_between_heads_and_layers_and_repeats_itself() -> None:
    rows, policy = layer(), CachePolicy("random", keep=0.3)
    first, again = compress(*rows, policy), compress(*rows, policy)
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.positions[0], first.positions[1])
    other = compress(*rows, policy, layer=1, num_layers=2)
    assert not torch.equal(first.positions, other.positions)


def test_random_keeps_each_candidate_about_equally_often() -> None:
    rows = layer(num_tokens=50, kv_heads=4)
    times = torch.zeros(50)
    for index in range(200):
        kept = compress(*rows, CachePolicy("random", keep=0.4), layer=index).positions
        times += torch.bincount(kept.flatten(), minlength=50)
    assert times[40:].unique().tolist() == [800]
    assert 0.15 < (times[:40] / 800).min() < (times[:40] / 800).max() < 0.35


def test_equal_scores_keep_the_earlier_token() -> None:
    zeros = torch.zeros(1, 40, 4)
    view = View(zeros, zeros, torch.zeros(40, dtype=torch.bool), sums_KT=torch.ones(1, 40))
    tier_T = torch.zeros(40, dtype=torch.int8)
    kept_KS, evicted_KE = select(view, column_sum, tier_T, Budget(5, 5))
    assert kept_KS.tolist() == [[*range(5), *range(35, 40)]]
    assert evicted_KE.tolist() == [[*range(5, 35)]]


IMAGES = {
    "none": (),
    "all": ((0, 64),),
    "start": ((0, 20),),
    "end": ((44, 64),),
    "two": ((3, 9), (20, 50)),
}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("text", TEXTS)
def test_images_anywhere_equal_the_oracle(images: Any, text: Any) -> None:
    rows = layer(num_tokens=64, images=images)
    policy = CachePolicy("look-m", keep=0.25, text=text)
    if nominal_rows(resolve(policy), rows.is_image_T) < 64:
        check_against_oracle(policy, rows)
    else:
        assert (images, text) in [((), "protect"), ((), "prior")]
        assert not compress(*rows, policy).compressed


@pytest.mark.parametrize("method", METHODS)
def test_only_modality_aware_policies_leave_a_text_only_prompt_alone(method: Any) -> None:
    rows = layer(images=())
    assert compress(*rows, CachePolicy(method, keep=0.2)).compressed == (method not in AWARE)


@pytest.mark.parametrize("method", sorted(PRESETS))
@pytest.mark.parametrize("recent", [0.0, 0.3, 0.7, 1.0])
def test_keeping_all_is_the_identity(method: Any, recent: Any) -> None:
    rows = layer(num_tokens=37, images=((5, 20),))
    kept = compress(*rows, CachePolicy(method, keep=1.0, recent=recent))
    assert torch.equal(kept.key, rows.k_KTD)
    assert torch.equal(kept.value, rows.v_KTD)
    assert torch.equal(kept.positions, torch.arange(37).expand(2, -1))
    assert (kept.compressed, kept.num_evicted, kept.num_merged) == (False, 0, 0)


def test_a_budget_larger_than_the_prompt_is_the_identity() -> None:
    rows = layer(num_tokens=30)
    assert not compress(*rows, CachePolicy("h2o", keep_tokens=30)).compressed
    assert not compress(*rows, CachePolicy("look-m", keep_tokens=999)).compressed
    assert compress(*rows, CachePolicy("h2o", keep_tokens=29)).num_evicted == 1


policies = st.builds(
    CachePolicy,
    method=st.sampled_from(METHODS),
    keep=st.floats(0.001, 1.0),
    recent=st.floats(0.0, 1.0),
    merge=st.sampled_from([None, *MERGES]),
    text=st.sampled_from([None, *TEXTS]),
) | st.builds(
    CachePolicy,
    method=st.sampled_from(METHODS),
    keep_tokens=st.integers(1, 60),
    recent=st.floats(0.0, 1.0),
    text=st.sampled_from([None, *TEXTS]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    policy=policies,
    image_bits=st.lists(st.booleans(), min_size=1, max_size=50),
    seed=st.integers(0, 5),
)
def test_whatever_the_policy_the_count_is_the_formula_and_the_rest_holds(
    policy: Any, image_bits: Any, seed: Any
) -> None:
    num_tokens = len(image_bits)
    rows = layer(num_tokens=num_tokens, head_size=4, seed=seed, images=())
    is_image_T = torch.tensor(image_bits)
    got = compress(*rows[:3], is_image_T, policy)
    text = policy.text or ("protect" if policy.method in PROTECTS else "none")
    important, recent = oracle.counts(
        policy.method, num_tokens, policy.keep, policy.keep_tokens, policy.recent
    )
    if text == "protect":
        important = max(important, image_bits[: num_tokens - recent].count(False))
    aware = text != "none" or policy.method in oracle.ABOUT_IMAGES
    expected = num_tokens if aware and not any(image_bits) else important + recent
    assert got.positions.shape[1] == expected == nominal_rows(resolve(policy), is_image_T)
    assert expected >= 1
    assert got.compressed == (expected < num_tokens)
    assert got.num_evicted == num_tokens - expected
    assert bool((got.positions.diff(dim=1) > 0).all())
    assert (
        got.positions[:, expected - recent :].tolist()
        == [list(range(num_tokens - recent, num_tokens))] * 2
    )
    assert got.key.shape == got.value.shape == (2, expected, 4)
    again = compress(*rows[:3], is_image_T, policy)
    assert torch.equal(got.key, again.key)
    assert torch.equal(got.positions, again.positions)


SCORES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 0.5, 0.25])


@given(st.lists(st.tuples(st.integers(0, 9), SCORES), min_size=1, max_size=24), st.data())
def test_the_best_are_the_first_of_the_sorted(tokens: Any, data: Any) -> None:
    tiers, scores = zip(*tokens, strict=True)
    tier_T, score_KT = torch.tensor(tiers, dtype=torch.int8), torch.tensor([scores, scores[::-1]])
    count = data.draw(st.integers(0, len(tokens)))
    expected_KN = lexicographic(tier_T, score_KT)[:, :count]
    found_KN = best(tier_T, score_KT, count)
    assert torch.equal(found_KN.sort(dim=1).values, expected_KN.sort(dim=1).values)
