"""docs/evidence.md from the committed runs: its tables, and the plot beside it.

python -m docs.generate.evidence
"""

import json
import sys
from pathlib import Path

from lookm.errors import ConfigError
from lookm.eval.page import Series, line_chart
from lookm.eval.questions import FULL
from lookm.eval.scores import bootstrap
from lookm.eval.text_table import keeps, over, row_of
from server.bench import readme_tables

ROOT = Path(__file__).parents[2]
PLOT = ROOT / "docs" / "evidence.svg"
SHOWN = (
    *("h2o", "snapkv", "vl-cache", "look-m-evict", "look-m", "look-m-plus"),
    *("mixkv", "aircache", "madakv", "streaming", "random"),
)
_PAPER = {"currentColor": "#1f2328", "var(--line)": "#d1d9e0"}


def plot() -> str:
    """What is lost against what is kept, as an SVG file on white."""
    report = json.loads((readme_tables.RUNS / "text.json").read_text(encoding="utf-8"))
    full, series = row_of(report, FULL), []
    for method in SHOWN:
        rows = [row_of(report, f"{method}@{keep}") for keep in keeps(report)]
        lost = [over(row, full) for row in rows]
        low, high = zip(*map(bootstrap, lost), strict=True)
        mean = [sum(each) / len(each) for each in lost]
        series.append(Series(method, [row["kept_ratio"] for row in rows], mean, low, high))
    svg = line_chart(
        series,
        "rows kept, of the prompt's",
        "nats a token over the full cache",
        "Real texts on SmolLM2-135M, paired 95 % intervals",
        percent="x",
        size_inches=(8.0, 5.4),
    )
    for ink, colour in _PAPER.items():
        svg = svg.replace(ink, colour)
    return svg.replace("<svg", '<svg style="background:#ffffff"', 1) + "\n"


def write() -> None:
    """The plot, where matplotlib is installed; else the one that is there stays."""
    try:
        PLOT.write_text(plot(), encoding="utf-8")
    except ConfigError as error:
        print(f"docs/evidence.svg is left as it is: {error}", file=sys.stderr)


if __name__ == "__main__":
    readme_tables.main([])
    write()
