"""The dashboards: as built, and of series that exist."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.files import (
    DASHBOARDS,
    DOCKER,
    VARIABLES,
    alerts,
    mistakes,
    panel_queries,
    panels,
)

HAS_SDK = importlib.util.find_spec("grafana_foundation_sdk") is not None


@pytest.mark.skipif(not HAS_SDK, reason="grafana-foundation-sdk is not installed")
def test_the_committed_dashboards_are_what_the_code_builds(tmp_path: Path) -> None:
    script = DOCKER / "grafana" / "build.py"
    subprocess.run([sys.executable, "-B", script, tmp_path], check=True)
    assert [path.name for path in DASHBOARDS] == ["cache.json", "serving.json"]
    for path in DASHBOARDS:
        built = (tmp_path / path.name).read_text()
        assert path.read_text() == built, f"run python {script.relative_to(DOCKER.parent)}"


def test_every_query_and_alert_reads_exposed_series_and_rates_counters() -> None:
    exprs = {query.name: query.expr for query in panel_queries()} | alerts()
    assert len(exprs) > 40
    assert {name: found for name, e in exprs.items() if (found := list(mistakes(e)))} == {}


def test_mistakes_are_found() -> None:
    assert list(mistakes("sum(rate(lookm_requests_running[1m]))"))
    assert list(mistakes("sum(lookm_prompt_tokens_total)"))
    assert list(mistakes("lookm_time_to_first_token_seconds"))
    assert list(mistakes("rate(lookm_invented_total[1m])"))


def test_every_panel_has_a_description_a_unit_a_source_and_a_place_of_its_own() -> None:
    places: set[tuple[str, int, int]] = set()
    for board, panel in panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "prometheus"
        assert [target["refId"] for target in panel["targets"]] == list("ABCD")[
            : len(panel["targets"])
        ]
        place = panel["gridPos"]
        cells = {
            (board, x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells


def test_dashboards_choose_by_model_server_and_method() -> None:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        variables = [v["name"] for v in board["templating"]["list"]]
        assert variables == ["model", "instance", "method"]
        assert {name.strip("$") for name in VARIABLES if "__" not in name} <= set(variables)
        assert 'instance=~"$instance"' in path.read_text().replace('\\"', '"')
