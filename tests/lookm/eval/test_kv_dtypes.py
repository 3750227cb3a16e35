"""The study of what storing the cache in bytes costs."""

import json
from pathlib import Path

import pytest
import torch

from lookm.eval import kv_dtypes, kv_dtypes_table, kv_rounding
from lookm.eval.__main__ import main
from lookm.eval.questions import Answer


def test_the_command_asks_at_both_types_and_counts_bytes_against_full_at_16_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--suite", "kv-dtypes", "--policies", "look-m@0.4", "--images", "2", "--count", "1"]
    where = ["--tasks", "needle", "attribute", "--out", str(tmp_path)]
    assert main([*asked, *where, "--json", str(tmp_path / "run.json")]) == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["kind"], report["questions"]) == ("kv-dtypes", 2)
    shares = {(row["policy"], row["kv_cache_dtype"]): row["bytes_share"] for row in report["rows"]}
    assert shares["full", "auto"] == 1
    for policy in ("full", "look-m@0.4"):
        narrow = shares[policy, "int8"] / shares[policy, "auto"]
        assert narrow == pytest.approx(68 / 128, rel=1e-3)  # 64 numbers and a scale
    assert "| `full` | 16 bits | 100% |" in capsys.readouterr().out


def test_agreement_is_with_the_full_cache_at_16_bits() -> None:
    def answer(text: str, kept: int) -> Answer:
        return Answer("q", "p", "t", 1, "a", text, float(text == "a"), None, kept, 80, None)

    row = kv_dtypes.row("p", "int8", [answer("a", 20), answer("b", 20)], [answer("a", 80)] * 2)
    assert (row["agrees"], row["right"], row["bytes_share"]) == (0.5, 0.5, 0.25)
    assert "| `p` | int8 | 25% | 50% (9% to 91%) | 50% (9% to 91%) |" in [
        *kv_dtypes_table.lines({"rows": [row]})
    ]


def test_channels_are_rounded_by_pages_and_an_outlier_costs_rows_more() -> None:
    keys = torch.randn(1, 2, 37, 16, generator=torch.Generator().manual_seed(0))
    before = keys.clone()
    moved = {}
    for name, way in (("rows", kv_rounding.by_rows), ("channels", kv_rounding.by_channels)):
        for size in (0.0, 100.0):
            rounded = kv_rounding.with_outlier(way, size)(keys)
            assert rounded.shape == keys.shape
            moved[name, size] = float((rounded - keys)[..., 1:].abs().max())
    assert torch.equal(keys, before)
    assert moved["channels", 0.0] == moved["channels", 100.0] < 0.02
    assert moved["rows", 100.0] > 10 * moved["rows", 0.0]
