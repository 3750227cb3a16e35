"""The capacity experiment as JSON (the schema is below) and as a table.

{"kind": "capacity",
 "command", "commit", "hardware", "versions", "measured_at":   see `lookm.bench.provenance`
 "model", "pool_bytes" (null where the server does not tell),
 "workload": see `server.bench.load.report`, "prompt_tokens": the longest prompt, by usage
 "slo":      {"ttft_s", "itl_s"}
 "rows": [{"keep", "policy", "conversations",
           "ratio":    to the largest fraction's; null where that served none
           "expected": by arithmetic alone, null for a model whose shape is not at hand
           "limit":    what one conversation more missed
           "bytes_each", "used_bytes_peak", "output_tokens_per_s", "ttft_max_s",
           "itl_p99_max_s": of the trial with this many}]
 "trials": [every trial, in order; `server.bench.capacity.search.Trial`]
 "elastic": {"policy", "fixed", "rows": see `server.bench.capacity.elastic`}, where asked for
 "paper": {"model", "pool_bytes", ..., "rows": [{"keep", "answer_tokens", "bytes_each",
           "conversations", "ratio"}]}}
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from lookm.bench.provenance import provenance
from lookm.bench.records import Json
from server.bench.capacity import elastic
from server.bench.capacity.large_model import on_paper
from server.bench.capacity.search import Experiment, Point, Trial
from server.bench.tables import seconds, text_table
from server.sizes import format_size


def capacity_report(
    points: Sequence[Point], experiment: Experiment, command: str, pool_bytes: int | None
) -> Json:
    """The schema above."""
    trials = [trial for point in points for trial in point.trials]
    base = points[0].conversations
    return {
        "kind": "capacity",
        **provenance(command),
        "model": experiment.workload.model,
        "pool_bytes": pool_bytes,
        "workload": experiment.workload.described(),
        "prompt_tokens": max(trial.prompt_tokens for trial in trials),
        "slo": experiment.slo.described(),
        "rows": [_row(point, base) for point in points],
        "trials": [asdict(trial) for trial in trials],
        "paper": on_paper([point.keep for point in points]),
    }


def lines(report: Json) -> Iterator[str]:
    """The report as text."""
    work, slo = report["workload"], report["slo"]
    pool = "" if report["pool_bytes"] is None else f" in {format_size(report['pool_bytes'])} of KV"
    yield (
        f"{report['model']}: conversations served together{pool}, each {work['images']} images "
        f"({report['prompt_tokens']:,} prompt tokens) and {work['answer_tokens']} tokens answered"
    )
    yield (
        f"within {seconds(slo.get('ttft_s'))} to the first token and {seconds(slo.get('itl_s'))} "
        "between pieces (p99), all at once, no preemption"
    )
    yield ""
    yield from text_table([COLUMNS, *(cells(row) for row in report["rows"])])
    yield ""
    if made := report.get("elastic"):
        yield elastic.title(made)
        yield from text_table([elastic.COLUMNS, *elastic.cells(made)])
        yield ""
    yield from paper_lines(report["paper"])


def paper_lines(paper: Json) -> Iterator[str]:
    """The arithmetic for the large model."""
    yield (
        f"On paper, {paper['model']} on {format_size(paper['gpu_bytes'])}: "
        f"{format_size(paper['pool_bytes'])} of KV, {paper['images']} images "
        f"({paper['prompt_tokens']:,} prompt tokens)"
    )
    yield from text_table(paper_rows(paper))


COLUMNS = (
    "policy", "conversations", "to full", "expected", "KV a prompt", "KV held, peak",
    "tokens/s", "last first token", "one more misses",
)  # fmt: skip


def cells(row: Json) -> tuple[str, ...]:
    """One row of the measured table, as words."""
    size = {key: row[key] for key in ("bytes_each", "used_bytes_peak")}
    held = ("-" if size[key] is None else format_size(round(size[key])) for key in size)
    speed = row["output_tokens_per_s"]
    return (
        row["policy"],
        str(row["conversations"]),
        "-" if row["ratio"] is None else f"{row['ratio']:.1f}x",
        "-" if row["expected"] is None else str(row["expected"]),
        *held,
        "-" if speed is None else f"{speed:.0f}",
        seconds(row["ttft_max_s"]),
        ", ".join(row["limit"]) or "-",
    )


def paper_rows(paper: Json) -> list[tuple[str, ...]]:
    """The rows of the paper's table: a line for each fraction, columns for each answer length."""
    answers = sorted({row["answer_tokens"] for row in paper["rows"]})
    found = {(row["keep"], row["answer_tokens"]): row for row in paper["rows"]}
    header = ["kept"]
    for tokens in answers:
        header += [f"{tokens} tokens answered", "to full"]
    rows = [tuple(header)]
    for keep in dict.fromkeys(row["keep"] for row in paper["rows"]):
        cells = [f"{keep:.0%}"]
        for tokens in answers:
            row = found[keep, tokens]
            cells += [str(row["conversations"]), f"{row['ratio']:.1f}x"]
        rows.append(tuple(cells))
    return rows


def _row(point: Point, base: int) -> Json:
    best: Trial | None = point.best
    return {
        "keep": point.keep,
        "policy": point.policy,
        "conversations": point.conversations,
        "ratio": point.conversations / base if base else None,
        "expected": point.expected,
        "limit": list(point.limit),
        "bytes_each": best and best.prompt_kv_bytes,
        "used_bytes_peak": best and best.used_bytes_peak,
        "output_tokens_per_s": best and best.output_tokens_per_s,
        "ttft_max_s": best and best.ttft_max_s,
        "itl_p99_max_s": best and best.itl_p99_max_s,
    }
