"""The tables of README's Results, and of the pages in docs/, from committed runs.

    python -m server.bench.readme_tables            # rewrites the pages between their markers
    python -m server.bench.readme_tables --check    # only says whether it is up to date

Between `<!-- results:own:begin -->` and `<!-- results:own:end -->` is what `results/own.json` says,
and so on for every name; how a run is shown depends on its `kind`. A marker without a file shows
nothing, so that the table of a machine that nobody had yet can have its place. Knows Markdown,
measures nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lookm.bench.records import Json
from lookm.eval.kv_dtypes_table import lines as kv_dtype_lines
from lookm.eval.text_table import wide as text_lines
from lookm.eval.turns_table import lines as turn_lines
from server.bench.capacity import elastic
from server.bench.capacity.report import COLUMNS, cells, paper_lines, paper_rows
from server.bench.detail import table as two_dials
from server.bench.stall_report import LEGEND, described
from server.bench.stall_report import rows as stall_rows
from server.bench.tables import markdown_table, seconds

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *(ROOT / "docs" / name for name in ("conversations.md", "evidence.md")))
RUNS = Path(__file__).parent / "results"
MAX_WORDS = 12
MARKED = re.compile(
    r"(<!-- results:(?P<name>[a-z0-9-]+):begin -->\n).*?(<!-- results:(?P=name):end -->)", re.DOTALL
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.readme_tables")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    stale = False
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before, RUNS)
        stale = stale or before != after
        if not options.check:
            page.write_text(after, encoding="utf-8")
    return 1 if stale and options.check else 0


def rendered(text: str, runs: Path) -> str:
    """`text` with the tables of `runs` between its markers."""

    def block(found: re.Match[str]) -> str:
        path = runs / f"{found['name']}.json"
        if not path.exists():
            return f"{found[1]}{found[3]}"
        report = json.loads(path.read_text(encoding="utf-8"))
        lines = [*TABLES.get(report["kind"], plain)(report), "", source(report)]
        return f"{found[1]}" + "".join(f"{line}\n" for line in lines) + found[3]

    return MARKED.sub(block, text)


def source(report: Json) -> str:
    """Where the numbers come from, in a line. A long command is in the file, whole."""
    machine = ", ".join([*filter(None, [report.get("device")]), report["hardware"]])
    words = report["command"].split()
    command = " ".join(words) if len(words) <= MAX_WORDS else " ".join([*words[:2], "..."])
    seed = f", seed {report['seed']}" if "seed" in report else ""
    return f"`{command}`{seed}, commit {report['commit']}, {machine}."


def own(report: Json) -> Iterator[str]:
    """This engine at full cache, compressed, and beside `generate()`."""
    full, kept = report["rows"]
    many, alone = f"{report['concurrent']} requests together", report["alone"]
    speeds = [row["decode_tokens_per_s"] for row in (full, kept)]
    held = [row["kv_bytes"] for row in (full, kept)]
    yield from markdown_table(
        [
            ("", f"`{full['policy']}`", f"`{kept['policy']}`", ""),
            (
                f"prefill of one prompt of {report['prompt_tokens']:,} tokens",
                f"{full['prefill_s']:.3f} s",
                f"{kept['prefill_s']:.3f} s",
                f"{kept['prefill_s'] / full['prefill_s']:.2f}x the time",
            ),
            (
                f"decoding, {many}",
                *(f"{speed:.0f} tokens/s" for speed in speeds),
                f"{speeds[1] / speeds[0]:.1f}x the speed",
            ),
            (
                f"KV bytes held by the {report['concurrent']}",
                *(f"{size:,}" for size in held),
                f"{held[1] / held[0]:.2f}x the memory",
            ),
            (
                f"one request alone, {alone['tokens']} tokens",
                f"{alone['ours_s']:.2f} s",
                "",
                f"{alone['ours_s'] / alone['generate_s']:.2f}x `generate()`'s "
                f"{alone['generate_s']:.2f} s",
            ),
        ]
    )


def peers(report: Json) -> Iterator[str]:
    """Servers beside each other; the first is the baseline."""
    base = report["rows"][0]
    header = (f"{report['clients']} clients, {report['answer_tokens']} tokens each", "tokens/s", "")
    rows = [(*header, "last client's first token", "")]
    for row in report["rows"]:
        speed, wait_s = row["output_tokens_per_s"], row["ttft_max_s"]
        rows.append(
            (
                row["server"],
                f"{speed:.1f}",
                f"{speed / base['output_tokens_per_s']:.1f}x",
                seconds(wait_s),
                f"{wait_s / base['ttft_max_s']:.2f}x",
            )
        )
    yield from markdown_table(rows)


def gpu(report: Json) -> Iterator[str]:
    """Both policies on a GPU, and what one has of the other. Sections that failed are left out."""
    decode, held, looks = (
        report["sections"].get(name, {}) for name in ("decode", "capacity", "prefill")
    )
    columns = ("full", "look-m@0.2")
    tokens = f"{report['prompt_tokens']:,} tokens"
    rows = [(f"{report['shape']}, prompts of {tokens}", *(f"`{name}`" for name in columns), "")]
    for name in decode:
        if name.startswith("gain x"):
            batch = name.removeprefix("gain x")
            speeds = (f"{decode[f'{each} x{batch}']['tokens_per_s']:,.0f}" for each in columns)
            rows.append((f"decoding, tokens/s at {batch}", *speeds, f"{decode[name]:.2f}x"))
    if "gain" in held:
        fit = (f"{held[name]['conversations']:,}" for name in columns)
        room = f"conversations in {held['capacity_bytes'] / 2**30:.0f} GiB"
        rows.append((room, *fit, f"{held['gain']:.1f}x"))
    for tokens, row in looks.items():
        if isinstance(row, dict):
            spent = (f"{row[name] * 1000:,.0f} ms" for name in ("full_s", "look_s"))
            rows.append((f"prefill of {int(tokens):,} tokens", *spent, f"{row['ratio']:.2f}x"))
    yield from markdown_table(rows)


def capacity(report: Json) -> Iterator[str]:
    """Conversations that one pool serves together: measured, and on paper for a large model."""
    yield from markdown_table([COLUMNS, *(_coded(cells(row)) for row in report["rows"])])
    if made := report.get("elastic"):
        yield from ("", f"{elastic.title(made)}:", "")
        yield from markdown_table([elastic.COLUMNS, *elastic.cells(made)])
    title, *_ = paper_lines(report["paper"])
    yield from ("", f"{title}:", "")
    yield from markdown_table(paper_rows(report["paper"]))


def evaluation(report: Json) -> Iterator[str]:
    """Answers under each policy; in brackets, 95 % intervals."""
    num_questions = report["rows"][0]["asked"]
    header = (
        "`kv_cache`",
        "KV bytes kept",
        f"{report['metric']}, of {num_questions}",
        "same answer as at full",
    )
    rows: list[tuple[str, ...]] = [header]
    for row in report["rows"]:
        held = row["bytes_ratio"]
        rows.append(
            (
                f"`{row['policy']}`",
                "-" if held is None else f"{held:.0%}",
                *(
                    f"{row[key]:.0%} ({row[f'{key}_low']:.0%} to {row[f'{key}_high']:.0%})"
                    for key in ("right", "agrees")
                ),
            )
        )
    yield from markdown_table(rows)


def stall(report: Json) -> Iterator[str]:
    """Streams while prompts arrive, by the prompts' policy."""
    header, *body = stall_rows(report)
    yield f"{described(report)}:"
    yield ""
    yield from markdown_table([header, *map(_coded, body)])
    yield ""
    yield " ".join(LEGEND) + "."


def conversations(report: Json) -> Iterator[str]:
    """Time to the first token by turn; in brackets what it is of the first turn's."""
    turns = range(report["turns"])
    title = f"{report['images']} images, first token of turn"
    yield from markdown_table(
        [
            (title, *(str(turn + 1) for turn in turns)),
            *(
                (
                    f"`{policy}`",
                    *(
                        f"{seconds(each['ttft_p50_s'])} ({each['over_first']:.2f}x)"
                        for each in rows
                    ),
                )
                for policy, rows in report["policies"].items()
            ),
        ]
    )


def faults(report: Json) -> Iterator[str]:
    """Attacks, and what other clients saw meanwhile."""
    memory = "API memory before, at its peak, afterwards"
    rows: list[tuple[str, ...]] = [
        ("attack", "worst `/healthz`", "worst small chat", memory, "wrong endings", "pages left")
    ]
    for row in report["rows"]:
        held = [row[f"{name}_bytes"] for name in ("rss_before", "peak_rss", "rss_after")]
        left_bytes = row["pages_left_bytes"]
        rows.append(
            (
                row["attack"],
                seconds(row["worst_healthz_s"]),
                seconds(row["worst_chat_s"]),
                "-" if None in held else ", ".join(f"{each / 1e6:,.0f}" for each in held) + " MB",
                f"{row['wrong']} of {row['num_requests']:,}",
                "-" if left_bytes is None else "none" if not left_bytes else f"{left_bytes:,} B",
            )
        )
    yield from markdown_table(rows)


def plain(report: Json) -> Iterator[str]:
    """A run of another kind: its `rows` as they are, a column for each of their names."""
    names = list(report["rows"][0])
    body = [[_said(row.get(name)) for name in names] for row in report["rows"]]
    yield from markdown_table([[name.replace("_", " ") for name in names], *body])


def turns(report: Json) -> Iterator[str]:
    """Whether later questions are still answered, by what is reused."""
    yield from turn_lines(report)
    yield ""
    yield (
        f"{report['talks']} conversations about {report['images']} pictures, each turn about "
        "another of them; one user at a time."
    )


def kv_decode(report: Json) -> Iterator[str]:
    """Decode steps at 16 bits and at int8."""
    wide, narrow = report["rows"]
    many = f"{report['concurrent']} requests of {report['prompt_tokens']:,} tokens at full cache"
    times = (f"{row['step_s'] * 1000:.0f} ms" for row in (wide, narrow))
    yield from markdown_table(
        [
            (f"{many}, threads: {report['threads']}", "16 bits", "int8", ""),
            ("a decode step, median", *times, f"{report['speed_ratio']:.2f}x the speed"),
            (
                "KV bytes held",
                *(f"{row['kv_bytes']:,}" for row in (wide, narrow)),
                f"{narrow['kv_bytes'] / wide['kv_bytes']:.2f}x the memory",
            ),
        ]
    )


def detail(report: Json) -> Iterator[str]:
    """How finely images are seen, and how much of that is kept."""
    width, height = report["page"]
    yield f"{report['pages']} pages of {width:,} x {height:,} pixels, and what their prompt holds:"
    yield ""
    yield from markdown_table(two_dials(report))


TABLES: dict[str, Callable[[Json], Iterator[str]]] = {
    "own": own,
    "peers": peers,
    "capacity": capacity,
    "gpu": gpu,
    "eval": evaluation,
    "stall": stall,
    "conversations": conversations,
    "turns": turns,
    "text": text_lines,
    "faults": faults,
    "kv-dtypes": kv_dtype_lines,
    "kv-decode": kv_decode,
    "detail": detail,
}


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _coded(row: tuple[str, ...]) -> tuple[str, ...]:
    return (f"`{row[0]}`", *row[1:])


if __name__ == "__main__":
    sys.exit(main())
