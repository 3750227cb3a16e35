"""What the deployment files say: dashboards, queries, alerts. Reads files, starts nothing."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.series import SERIES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "30s", "$__range": "1m", "$instance": ".*", "$method": ".*"}

_SERIES_NAME = re.compile(r"\blookm_\w+")
_COMPARISON = re.compile(r"\s(?:==|>|<)\s+[\d.]+")


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel, as Prometheus gets it from Grafana."""

    board: str
    panel: str
    legend: str
    expr: str

    @property
    def name(self) -> str:
        return f"{self.board}: {self.panel}: {self.legend}"


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that shows something, with its dashboard's name."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield path.stem, panel


def panel_queries() -> list[PanelQuery]:
    """Every query of every panel, its variables replaced by values."""
    return [
        PanelQuery(board, panel["title"], target["legendFormat"], filled(target["expr"]))
        for board, panel in panels()
        for target in panel["targets"]
    ]


def filled(expr: str) -> str:
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


def alerts() -> dict[str, str]:
    """Every alert's expression."""
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def without_thresholds(expr: str) -> str:
    """An alert's expression without what it compares to, so that it returns what it compares."""
    return _COMPARISON.sub("", expr)


def exposed_kinds() -> dict[str, str]:
    """Every name that `/metrics` shows, and its kind; a histogram's parts are counters."""
    kinds = {}
    for series in SERIES:
        parts = ("_bucket", "_sum", "_count") if series.kind == "histogram" else ("",)
        kind = "counter" if series.kind == "histogram" else series.kind
        kinds |= {series.name + part: kind for part in parts}
    return kinds


def mistakes(expr: str) -> Iterator[str]:
    """Series that nobody exposes, counters that are not rated, gauges that are."""
    kinds = exposed_kinds()
    for found in _SERIES_NAME.finditer(expr):
        name, before = found[0], expr[: found.start()]
        rated = before.endswith(("rate(", "increase("))
        if name not in kinds:
            yield f"{name} is not exposed"
        elif (kinds[name] == "counter") != rated:
            yield f"{name} is a {kinds[name]} and {'is' if rated else 'is not'} rated"
