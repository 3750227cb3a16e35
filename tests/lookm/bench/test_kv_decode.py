"""Decode steps at two types side by side: what the report holds."""

from pathlib import Path

import pytest

from lookm.bench import kv_decode
from lookm.bench.random_checkpoint import SHAPES, write
from server.bench.readme_tables import TABLES


def test_both_engines_decode_the_same_requests_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(SHAPES["tiny"], tmp_path)
    report = kv_decode.compare(str(tmp_path), concurrent=2, pairs=3)
    wide, narrow = report["rows"]
    assert (wide["kv_cache_dtype"], narrow["kv_cache_dtype"]) == ("auto", "int8")
    assert narrow["kv_bytes"] / wide["kv_bytes"] == (16 + 4) / 32
    assert report["speed_ratio"] > 0
    assert f"{narrow['kv_bytes']:,}" in "\n".join(TABLES["kv-decode"](report))
