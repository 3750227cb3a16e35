"""How policies are written and which are refused."""

from typing import Any

import pytest

from lookm import CachePolicy, PolicyError
from lookm.policy import PRESETS, least, most, parse, resolve, to_string


def test_the_presets_are_the_documented_ones_in_order() -> None:
    assert list(PRESETS) == [
        "full", "look-m", "look-m-average", "look-m-weighted", "look-m-evict", "look-m-plus",
        "h2o", "mean-h2o", "roco", "snapkv", "streaming", "random",
        "pyramidkv", "vl-cache", "prefixkv", "meda", "aircache", "madakv", "mixkv", "d2o",
        "tova", "keydiff", "knorm", "expected-attention",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("full", CachePolicy("full")),
        ("look-m", CachePolicy("look-m", keep=0.2)),
        ("look-m@0.2", CachePolicy("look-m", keep=0.2)),
        ("h2o@.05", CachePolicy("h2o", keep=0.05)),
        ("h2o@1", CachePolicy("h2o", keep=1.0)),
        ("snapkv@1.0", CachePolicy("snapkv", keep=1.0)),
        ("streaming@16", CachePolicy("streaming", keep_tokens=16)),
        ("look-m-evict@512", CachePolicy("look-m-evict", keep_tokens=512)),
        ("look-m-plus@0.1-0.5", CachePolicy("look-m-plus", keep=0.5, keep_min=0.1)),
        ("h2o@.05-1", CachePolicy("h2o", keep=1.0, keep_min=0.05)),
        ("h2o@0.00001-0.30000001", CachePolicy("h2o", keep=0.30000001, keep_min=0.00001)),
    ],
)
def test_the_short_form_is_read_and_written_back(text: Any, policy: Any) -> None:
    assert parse(text) == policy
    assert resolve(parse(to_string(policy))).policy == resolve(policy).policy


@pytest.mark.parametrize(
    "amount",
    ["7", "15", "1.5", "16.5", "-1", "0", "0.0", "nan", "inf", "1e-1", "", " 0.2", "0.2 ", "2_0",
     "0.2@0.3", "0.2-", "-0.2", "0.1-0.2-0.3", "0.1-16", "16-0.5", "0-0.5", "٣", "20%",
     "9" * 50, "."],
)  # fmt: skip
def test_an_amount_that_is_neither_form_is_refused_and_both_forms_are_named(amount: Any) -> None:
    with pytest.raises(PolicyError, match=r"look-m@0\.2.*look-m@512") as error:
        parse(f"look-m@{amount}")
    assert error.value.param == "kv_cache"
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "@0.2", "lookm", "LOOK-M@0.2", "nope", "x" * 5000])
def test_an_unknown_method_is_refused_and_the_known_ones_are_named(text: Any) -> None:
    with pytest.raises(PolicyError, match="look-m, look-m-average") as error:
        parse(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 0.2, "keep_tokens": 20}, "give one of them"),
        ({"keep": 0.0}, r"\(0, 1\]"),
        ({"keep": 1.01}, r"\(0, 1\]"),
        ({"keep": -0.2}, r"\(0, 1\]"),
        ({"keep": float("nan")}, r"\(0, 1\]"),
        ({"keep": True}, r"\(0, 1\]"),
        ({"keep": "0.2"}, r"\(0, 1\]"),
        ({"keep": 0.5, "keep_min": 0.0}, r"\(0, 1\]"),
        ({"keep": 0.5, "keep_min": float("nan")}, r"\(0, 1\]"),
        ({"keep": 0.5, "keep_min": "0.1"}, r"\(0, 1\]"),
        ({"keep_min": 0.1}, r"\(0, 1\]"),
        ({"keep_tokens": 64, "keep_min": 0.1}, r"\(0, 1\]"),
        ({"keep": 0.2, "keep_min": 0.5}, "smaller one"),
        ({"method": "full", "keep": 1.0, "keep_min": 0.5}, "keeps everything"),
        ({"keep_tokens": 0}, ">= 1"),
        ({"keep_tokens": 20.0}, ">= 1"),
        ({"keep_tokens": True}, ">= 1"),
        ({"keep": 0.2, "recent": -0.1}, r"\[0, 1\]"),
        ({"keep": 0.2, "recent": 1.1}, r"\[0, 1\]"),
        ({"keep": 0.2, "recent": float("nan")}, r"\[0, 1\]"),
        ({"merge": "mean"}, "none, average, pivot, weighted"),
        ({"text": "keep"}, "protect, prior, none"),
        ({"method": "nope"}, "look-m"),
        ({"method": "full", "keep": 0.2}, "keeps everything"),
        ({"method": "full", "keep_tokens": 20}, "keeps everything"),
        ({"method": "full", "merge": "pivot"}, "evicts nothing"),
        ({"method": "full", "text": "protect"}, "evicts nothing"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_with_what_is_allowed(
    fields: Any, message: Any
) -> None:
    with pytest.raises(PolicyError, match=message) as error:
        resolve(CachePolicy(**{"method": "look-m", **fields}))
    assert error.value.param == "kv_cache"


def test_a_range_of_one_fraction_is_that_fraction() -> None:
    assert resolve("h2o@0.3-0.3") == resolve("h2o@0.3")
    assert to_string(CachePolicy("h2o", keep=0.3, keep_min=0.3)) == "h2o@0.3"


def test_a_range_has_a_least_and_a_most() -> None:
    policy = parse("look-m@0.1-0.5")
    assert (least(policy), most(policy)) == (parse("look-m@0.1"), parse("look-m@0.5"))
    assert least(parse("look-m@64")) == most(parse("look-m@64")) == parse("look-m@64")


def test_a_method_without_a_budget_keeps_the_papers_fifth() -> None:
    assert resolve(CachePolicy("h2o")).policy.keep == 0.2
    assert resolve(CachePolicy("full")).policy.keep is None


@pytest.mark.parametrize(
    ("keep", "recent", "tokens", "expected"),
    [(0.2, 0.5, 634, (63, 63)), (0.2, 0.5, 1000, (100, 100)), (0.05, 0.5, 39, (0, 1)),
     (0.01, 0.0, 39, (1, 0)), (1.0, 0.3, 5, (4, 1)), (0.3, 0.5, 10, (1, 1))],
)  # fmt: skip
def test_a_fraction_is_the_papers_two_integers(
    keep: Any, recent: Any, tokens: Any, expected: Any
) -> None:
    recipe = resolve(CachePolicy("h2o", keep=keep, recent=recent))
    budget = recipe.preset.budget(recipe.policy, tokens)
    assert (budget.important, budget.recent) == expected


def test_only_presets_about_images_and_text_modes_make_a_recipe_modality_aware() -> None:
    aware = {method for method in PRESETS if resolve(CachePolicy(method)).preset.modality_aware}
    about_images = {"look-m", "look-m-average", "look-m-weighted", "look-m-evict", "look-m-plus"}
    assert aware == about_images | {"meda", "aircache", "madakv"}
    assert resolve(CachePolicy("h2o", text="prior")).preset.modality_aware
    assert not resolve(CachePolicy("look-m", text="none")).preset.modality_aware
