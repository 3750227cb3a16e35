"""Reports as one HTML page each, with plots. Knows what is worth a picture; draws none itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from lookm.bench.records import Json
from lookm.eval.page import Section, Series, Table, html_page, line_chart
from server.bench.capacity import elastic
from server.bench.capacity import report as capacity_report
from server.bench.load import compare
from server.bench.load import report as load_report

MAX_POINTS = 60
T = TypeVar("T")


def page(made: Json) -> str:
    """The page of a report, by its kind. Raises `ConfigError` without matplotlib."""
    return PAGES[made["kind"]](made)


def load_page(made: Json) -> str:
    """One load run: who waited how long, and what the pool held meanwhile."""
    groups = {name: [r for r in made["requests"] if r["policy"] == name] for name in made["mix"]}
    failed = [f"Failed: {count} x {kind}." for kind, count in made["total"]["errors"].items()]
    sections = [
        Section("Results", failed, tables=[_table(load_report.rows(made))]),
        Section(
            "Latency",
            ("Counted from when a request was due, so that a queue shows in full.",),
            [*_latencies(groups), _waits(groups)],
        ),
    ]
    if made["kv_over_time"]:
        sections.append(Section("The server", charts=list(_server(made["kv_over_time"]))))
    return html_page("Load run", f"{load_report.described(made)}.\n\n{_origin(made)}", sections)


def compare_page(first: Json, second: Json) -> str:
    """Two load runs on the same axes."""
    groups = {"A": first["requests"], "B": second["requests"]}
    rows = compare.rows(first, second)
    about = [
        f"{name}: {load_report.described(each)}." for name, each in (("A", first), ("B", second))
    ]
    about += [f"{name}: {_origin(each)}" for name, each in (("A", first), ("B", second))]
    sections = [
        Section("Side by side", tables=[_table(rows)]),
        Section("Latency", charts=[*_latencies(groups), _waits(groups)]),
    ]
    return html_page("Two load runs", "\n\n".join(about), sections)


def capacity_page(made: Json) -> str:
    """Load against kept fraction: measured, expected, and on paper for a large model."""
    rows = made["rows"]
    counts = [_line("measured", rows, "conversations")]
    if all(row["expected"] is not None for row in rows):
        counts.append(_line("expected from pages", rows, "expected", dashed=True))
    served = [row for row in rows if row["conversations"]]
    title, within, *_ = capacity_report.lines(made)
    paper = made["paper"]
    answers = sorted({row["answer_tokens"] for row in paper["rows"]})
    on_paper, on_paper_ratio = (
        [
            _line(
                f"{tokens} tokens answered",
                [row for row in paper["rows"] if row["answer_tokens"] == tokens],
                key,
            )
            for tokens in answers
        ]
        for key in ("conversations", "ratio")
    )
    charts = [
        _chart(counts, KEPT, "conversations", "Served together", percent="x"),
        _chart(
            [_line("measured", served, "output_tokens_per_s")],
            KEPT, "tokens/s", "Tokens per second, all together", percent="x",
        ),
        _chart(
            [_line("measured", served, "ttft_max_s")],
            KEPT, "seconds", "First token of the last one", percent="x",
        ),
    ]  # fmt: skip
    table = [capacity_report.COLUMNS, *(capacity_report.cells(row) for row in rows)]
    paper_title, *_ = capacity_report.paper_lines(paper)
    sections = [
        Section("Load against kept fraction", CAPACITY_TEXT, charts, [_table(table)]),
        *_elastic(made),
        Section(
            "A large model, on paper",
            (paper_title, "The whole answer is kept, so long answers lower the ratio."),
            [
                _chart(on_paper, KEPT, "conversations", "In the same pool", percent="x"),
                _chart(on_paper_ratio, KEPT, "times as many", "Beside full", percent="x"),
            ],
            [_table(capacity_report.paper_rows(paper))],
        ),
    ]
    return html_page(
        "Conversations in one KV pool", f"{title}, {within}.\n\n{_origin(made)}", sections
    )


def _elastic(made: Json) -> list[Section]:
    """What is kept as the load grows, where that was measured."""
    if not (found := made.get("elastic")):
        return []
    rows = [row for row in found["rows"] if row["keep_mean"] is not None and not row["missed"]]
    loads = [row["conversations"] for row in rows]
    taken = Series("mean", loads, [row["keep_mean"] for row in rows])
    chart = _chart([taken], "conversations at once", KEPT, "What is taken as load grows")
    table = [elastic.COLUMNS, *elastic.cells(found)]
    return [Section("An elastic budget", (elastic.title(found),), [chart], [_table(table)])]


PAGES: dict[str, Callable[[Json], str]] = {"load": load_page, "capacity": capacity_page}
LATENCIES = {
    "ttft_s": "First token",
    "itl_p99_s": "Gaps between pieces, p99 of an answer",
    "e2e_s": "Whole answer",
}
KEPT = "kept fraction of the prompt's KV cache"
CAPACITY_TEXT = (
    "The largest number of conversations that start together and are all answered at once: every "
    "answer is complete, everyone has a first token before anyone has a last one, nobody's pages "
    "are taken away again, and everyone is within the SLO.",
    "Expected is the arithmetic of pages at the end of all answers. Conversations are a few steps "
    "apart, so one more may fit.",
)


def _latencies(groups: dict[str, list[Json]]) -> Iterator[str]:
    """The share of answers within so many seconds, for each latency."""
    names = {
        "ttft_s": "First token",
        "itl_p99_s": "Gaps (p99 of an answer)",
        "e2e_s": "Whole answer",
    }
    for key, title in names.items():
        series = []
        for name, requests in groups.items():
            values = sorted(r[key] for r in requests if r["error"] is None and r[key] is not None)
            shares = [(i + 1) / len(values) for i in range(len(values))]
            series.append(Series(name, _thin(values), _thin(shares)))
        yield _chart(series, "seconds", "share of answers within", title, percent="y")


def _waits(groups: dict[str, list[Json]]) -> str:
    series = []
    for name, requests in groups.items():
        done = _thin(sorted((r["due_s"], r["ttft_s"]) for r in requests if r["error"] is None))
        series.append(Series(name, [due for due, _ in done], [wait for _, wait in done]))
    return _chart(series, "due at, seconds", "seconds", "First token, over the run")


def _server(looks: Sequence[Sequence[float]]) -> Iterator[str]:
    """What `/metrics` said over the run."""
    thin = _thin(looks)
    at_s = [look[0] for look in thin]
    held = Series("held", at_s, [look[1] / 2**20 for look in thin])
    yield _chart([held], "seconds", "MiB", "KV cache held")
    running = Series("running", at_s, [look[2] for look in thin])
    waiting = Series("waiting", at_s, [look[3] for look in thin], dashed=True)
    yield _chart([running, waiting], "seconds", "requests", "Requests in the engine")


def _line(name: str, rows: Sequence[Json], key: str, *, dashed: bool = False) -> Series:
    return Series(name, [row["keep"] for row in rows], [row[key] for row in rows], dashed=dashed)


def _chart(series: Sequence[Series], x: str, y: str, title: str, *, percent: str = "") -> str:
    return line_chart(series, x, y, title, percent=percent)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    return Table(rows[0], rows[1:])


def _thin(values: Sequence[T]) -> list[T]:
    """At most about `MAX_POINTS` of them, evenly, with the last one."""
    step = max(1, -(-len(values) // MAX_POINTS))
    return [*values[: len(values) - 1 : step], *values[-1:]]


def _origin(made: Json) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"{made['command']}; commit {made['commit']}; {made['hardware']}; {versions}."
