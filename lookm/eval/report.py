"""A run's scores as JSON and as one HTML page.

    {"kind": "eval", "suite": "demo" or "milebench", "seed",
     "command", "commit", "hardware", "versions", "measured_at":   where the caller knows them
     "settings": {...}      what the answers depend on (run.json)
     "metric":   what `right` is
     "asked_by": {...}      what was asked: tasks, images, count
     "rows":     [ROW]      all questions together, a row for each policy, in the order asked
     "tasks":    {task: [ROW]},
     "columns":  {policy: {column: share}}   MileBench's columns; only there}

    ROW: {"policy", "asked", "failed",
          "right", "right_low", "right_high":      the suite's metric, 95 % interval
          "lenient":                               share of the facts (demo suite), or null
          "agrees", "agrees_low", "agrees_high":   answers equal to those at full cache
          "bytes_ratio":                           KV bytes kept over full, or null}

Knows scores and pages. Knows nothing of how answers came about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lookm.eval.page import Cell, Section, Series, Table, html_page, line_chart
from lookm.eval.questions import FULL
from lookm.eval.scores import ALL, Score

Json = dict[str, Any]

_BYTES = "KV bytes kept, of the full cache's"
_AGREES = "same answer as at full cache"
_LENIENT = (
    "The charts show whole answers that are exact, word for word. Lenient, in the tables: the F1 "
    "of the words that carry news (colours, shapes, places, numbers), in order."
)


def scores_json(scores: Mapping[str, Sequence[Score]], about: Json) -> Json:
    """The schema above; `about` is everything but the rows."""
    rows = {task: [_rounded(asdict(one)) for one in found] for task, found in scores.items()}
    return {"kind": "eval", **about, "rows": rows.pop(ALL), "tasks": rows}


def _rounded(row: Json) -> Json:
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}


def report_html(
    scores: Mapping[str, Sequence[Score]], about: Json, kept: Section | None = None
) -> str:
    """The page, with pictures of what was `kept`. Raises `ConfigError` without matplotlib."""
    intro = (
        f"{len(scores[ALL])} cache policies on the same {scores[ALL][0].asked} questions, greedy. "
        "The axis is what was really held in bytes, not the budget that was asked for: methods "
        "that protect text overshoot it. Bars are 95 % intervals (Wilson's for shares, bootstrap "
        "for ROUGE-L). In the first section every question counts once."
    )
    if any(one.lenient is not None for one in scores[ALL]):
        intro += f"\n\n{_LENIENT}"
    metric = str(about["metric"])
    sections = [
        Section(
            "All tasks" if task == ALL else f"Task: {task}",
            charts=(
                _chart(found, metric, agreement=False, title=f"{task}: {metric}"),
                _chart(found, _AGREES, agreement=True, title=f"{task}: {_AGREES}"),
            ),
            tables=(score_table(found, metric),),
        )
        for task, found in scores.items()
    ]
    if about.get("columns"):
        sections.insert(1, _columns(about["columns"]))
    if kept is not None:
        sections.insert(1, kept)
    return html_page(
        f"{about['suite']}: answers against kept bytes", intro, [*sections, _how(about)]
    )


def columns_table(columns: Mapping[str, Mapping[str, float | None]]) -> Table:
    """MileBench's columns, in percent as its tables have them."""
    names = next(iter(columns.values()))
    return Table(
        ["kv_cache", *names],
        [
            [policy, *("-" if share is None else f"{share * 100:.1f}" for share in found.values())]
            for policy, found in columns.items()
        ],
    )


def _columns(columns: Mapping[str, Mapping[str, float | None]]) -> Section:
    text = "Unweighted means over a column's data sets; a dash where none of them was asked."
    return Section("MileBench's columns", [text], tables=[columns_table(columns)])


def _chart(scores: Sequence[Score], label: str, *, agreement: bool, title: str) -> str:
    by_method: dict[str, list[Score]] = {}
    for one in scores:
        if one.bytes_ratio is not None:
            by_method.setdefault(one.policy.partition("@")[0], []).append(one)
    least = min((one.bytes_ratio for one in scores if one.bytes_ratio is not None), default=1.0)
    series = []
    for method, found in by_method.items():
        found = sorted(found, key=lambda one: one.bytes_ratio or 0.0)
        columns = [
            (one.agrees, one.agrees_low, one.agrees_high)
            if agreement
            else (one.right, one.right_low, one.right_high)
            for one in found
        ]
        kept = [one.bytes_ratio or 0.0 for one in found]
        if method == FULL:  # a level across the chart, to compare with
            kept, columns = [least, *kept], [*columns, *columns]
        middle, low, high = zip(*columns, strict=True)
        series.append(Series(method, kept, middle, low, high, dashed=method == FULL))
    return line_chart(series, _BYTES, label, title, percent="xy")


def score_table(scores: Sequence[Score], metric: str) -> Table:
    """A row for each policy, intervals in brackets."""
    lenient = any(one.lenient is not None for one in scores)
    header = ["kv_cache", "KV bytes kept", metric, *["lenient"] * lenient, "same as full"]
    failed = any(one.failed for one in scores)
    rows: list[list[Cell]] = [
        [
            one.policy,
            "-" if one.bytes_ratio is None else f"{one.bytes_ratio:.0%}",
            f"{one.right:.0%} ({one.right_low:.0%}–{one.right_high:.0%})",
            *[f"{one.lenient or 0.0:.0%}"] * lenient,
            f"{one.agrees:.0%} ({one.agrees_low:.0%}–{one.agrees_high:.0%})",
            *[f"{one.failed} of {one.asked}"] * failed,
        ]
        for one in scores
    ]
    return Table([*header, *["failed"] * failed], rows)


def _how(about: Json) -> Section:
    rows: list[list[Cell]] = [
        [
            name,
            ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value),
        ]
        for name, value in about.items()
        if name != "columns"
    ]
    return Section("How it was measured", tables=[Table(["what", "was"], rows)])
