"""Writes the dashboards of `panels.py` as Grafana's JSON: python docker/grafana/build.py [FOLDER]

Needs grafana-foundation-sdk in its 11.6 flavour. The result is committed, and a test compares.
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from panels import BOARDS, Board, Panel, Query

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")
COLUMNS = 24
HEIGHTS = {"stat": 4, "lines": 8, "stack": 8}
ALL = models.VariableOption(text=["All"], value=["$__all"])


def build(board: Board) -> str:
    """One dashboard as JSON."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["lookm"])
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("5s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(_variable("model", "label_values(lookm_build_info, model)"))
        .with_variable(
            _variable("instance", 'label_values(lookm_build_info{model=~"$model"}, instance)')
        )
        .with_variable(_variable("method", "label_values(lookm_generation_tokens_total, method)"))
        .link(
            dashboard.DashboardLink("Dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["lookm"])
        )
    )
    y = number = 0
    for row in board.rows:
        number, y = number + 1, y + 1
        place = models.GridPos(h=1, w=COLUMNS, x=0, y=y - 1)
        made.with_row(dashboard.Row(row.title).id(number).grid_pos(place))
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            number, height = number + 1, HEIGHTS[panel.kind]
            place = models.GridPos(h=height, w=panel.width, x=x, y=y)
            made.with_panel(_panel(panel).id(number).grid_pos(place))
            x += panel.width
        y += height
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(ALL)
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    made: stat.Panel | timeseries.Panel
    if panel.kind == "stat":
        options = common.ReduceDataOptions().calcs(["lastNotNull"])
        made = stat.Panel().reduce_options(options).graph_mode(common_models.BigValueGraphMode.NONE)
    else:
        made = timeseries.Panel().legend(_legend()).fill_opacity(10)
        if panel.kind == "stack":
            stacked = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
            made = made.stacking(stacked).fill_opacity(30)
    made = made.title(panel.title).description(panel.description).unit(panel.unit).min(0)
    made = made.datasource(SOURCE)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made = made.with_target(_target(letter, query, instant=panel.kind == "stat"))
    return made


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _target(letter: str, query: Query, *, instant: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
    target = target.datasource(SOURCE)
    return target.instant() if instant else target.range()


def main() -> None:
    """Write every dashboard into the folder that was named, or into the repository."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (folder / f"{board.uid.removeprefix('lookm-')}.json").write_text(build(board))


if __name__ == "__main__":
    main()
