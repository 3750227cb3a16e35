"""What docs/evidence.md says in words is what its committed run says in numbers."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from lookm.eval.text import KEEPS
from lookm.eval.text_table import over, row_of
from lookm.policy import PRESETS

ROOT = Path(__file__).parents[2]
RUN = json.loads((ROOT / "server" / "bench" / "results" / "text.json").read_text())
BUDGETS = [f"{keep:g}" for keep in KEEPS]


def lost(method: str, keep: Any) -> float:
    """Nats a token over full."""
    return fmean(over(row_of(RUN, f"{method}@{keep}"), row_of(RUN, "full")))


def test_every_preset_is_there_at_every_budget_over_the_same_texts() -> None:
    asked = {f"{method}@{keep}" for method in PRESETS if method != "full" for keep in BUDGETS}
    assert {row["policy"] for row in RUN["rows"]} == asked | {"full"}
    assert {len(row["nll"]) for row in RUN["rows"]} == {len(RUN["texts"])}


@pytest.mark.parametrize("keep", BUDGETS)
def test_presets_hold_equal_rows(keep: Any) -> None:
    held = [row["kept_ratio"] for row in RUN["rows"] if row["policy"].endswith(f"@{keep}")]
    assert max(held) - min(held) <= 0.002


@pytest.mark.parametrize("keep", BUDGETS)
def test_merging_costs_and_choosing_by_attention_pays(keep: Any) -> None:
    assert lost("look-m", keep) > lost("look-m-evict", keep)
    assert lost("look-m-average", keep) > lost("look-m-evict", keep)
    assert lost("look-m-plus", keep) > lost("look-m-evict", keep)
    assert lost("random", keep) > lost("look-m-evict", keep) + 0.3


@pytest.mark.parametrize("method", ["roco", "mean-h2o", "h2o", "look-m-evict"])
def test_the_recommended_ones_lose_little_at_35_and_less_at_50_percent(method: Any) -> None:
    assert lost(method, 0.35) < 0.08
    assert lost(method, 0.5) < 0.04
