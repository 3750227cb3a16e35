"""`lookm bench` against a real server with a real engine."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.server.process import ServerProcess

pytestmark = pytest.mark.e2e


def bench(*flags: str) -> str:
    done = CliRunner().invoke(app, ["bench", *flags])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_mixed_load_is_answered_and_the_compressed_half_holds_less(
    demo_server: ServerProcess, tmp_path: Path
) -> None:
    saved = tmp_path / "run.json"
    load = ("--rate", "20", "--requests", "8", "--images", "2-4", "--image-side-px", "112")
    mix = ("--policies", "full,look-m@0.2", "--answer-tokens", "4-8", "--json", str(saved))
    told = bench("--url", f"{demo_server.url}/v1", *load, *mix)
    assert "KV cache held" in told
    run = json.loads(saved.read_text())
    assert run["total"]["completed"] == 8
    assert run["total"]["uncounted"] == 0
    assert 8 * 4 <= run["total"]["output_tokens"] <= 8 * 8
    full, fifth = run["policies"]["full"], run["policies"]["look-m@0.2"]
    assert fifth["kv_bytes_mean"] < 0.5 * fifth["kv_full_bytes_mean"]
    assert full["kv_bytes_mean"] == full["kv_full_bytes_mean"]


def test_the_capacity_of_a_running_server_is_measured(
    demo_server: ServerProcess, tmp_path: Path
) -> None:
    saved = tmp_path / "capacity.json"
    small = ("--images", "2", "--answer-tokens", "8", "--max-conversations", "2")
    slo = ("--keep", "1,0.2", "--slo-ttft-s", "60", "--slo-itl-s", "30")
    bench("capacity", "--url", demo_server.url, *small, *slo, "--json", str(saved))
    full, fifth = json.loads(saved.read_text())["rows"]
    assert (full["conversations"], fifth["conversations"]) == (2, 2)  # the bound of the search
    assert full["limit"] == fifth["limit"] == []
    assert fifth["bytes_each"] < 0.5 * full["bytes_each"]


def test_streams_go_on_beside_arriving_prompts_of_every_policy(
    demo_server: ServerProcess, tmp_path: Path
) -> None:
    saved = tmp_path / "stall.json"
    small = ("--prompts", "2", "--images", "4", "--baseline-s", "0.5", "--pause-s", "0.1")
    mix = ("--policies", "full,look-m@0.2,look-m-plus@0.2", "--json", str(saved))
    told = bench("stall", "--url", demo_server.url, *small, *mix)
    assert "gap p50" in told
    policies = json.loads(saved.read_text())["policies"]
    assert list(policies) == ["full", "look-m@0.2", "look-m-plus@0.2"]
    for found in policies.values():
        assert not found["errors"]
        assert found["gaps"] > 0
        assert found["baseline_gaps"] > 0
        assert found["gap_max_s"] >= found["gap_p99_s"] >= found["gap_p50_s"] > 0
        assert found["ttft_over_alone"] > 0
        assert found["cached_tokens"] == 0
