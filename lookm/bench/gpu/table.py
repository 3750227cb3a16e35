"""A GPU run as Markdown: where it comes from, then a table a section."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def markdown(report: Json) -> str:
    """The whole page. A section that failed says why."""
    lines = [
        f"# {report['device']}",
        "",
        f"LLaVA shape {report['shape']}, {report['dtype']}, random weights, prompts of "
        f"{report.get('prompt_tokens', '?')} tokens. Commit {report['commit']}, "
        f"{report['measured_at']}, {report['versions']}, "
        f"triton {report['triton']}.",
        "",
        f"    {report['command']}",
        "",
    ]
    lines += [*_bars(report["sections"]), ""]
    for name, section in report["sections"].items():
        lines += [f"## {name}", ""]
        lines += [section["error"]] if "error" in section else list(_section(section))
        lines.append("")
    return "\n".join(lines)


def _bars(sections: Json) -> Iterator[str]:
    """What the numbers are held against, each with its bar."""
    decode, theirs = sections.get("decode", {}), sections.get("generate", {})
    found = {
        f"decode, {key}: share of the roofline >= 0.75": row["step_share_of_roofline"]
        for key, row in decode.items()
        if isinstance(row, dict)
    }
    batches = [key.removeprefix("gain x") for key in decode if key.startswith("gain x")]
    if batches:
        gain = decode[f"gain x{batches[-1]}"]
        found[f"tokens per second, look-m@0.2 over full, x{batches[-1]} >= 2.5"] = gain
    for batch in batches:
        if batch in theirs:
            ours_s, wanted = decode[f"full x{batch}"]["step_s"], 1.5 if batch == "1" else 4
            found[f"over generate(), full, x{batch} >= {wanted}"] = theirs[batch]["step_s"] / ours_s
    if "gain" in sections.get("capacity", {}):
        found["conversations, look-m@0.2 over full >= 4.7"] = sections["capacity"]["gain"]
    for tokens, row in sections.get("prefill", {}).items():
        if isinstance(row, dict):
            found[f"prefill of {tokens} tokens, look over full <= 1.08"] = row["ratio"]
            if row["least_ratio"]:
                found[f"prefill of {tokens} tokens, the least that is possible"] = row[
                    "least_ratio"
                ]
    yield from ("| Bar | Measured |", "|---|---|")
    yield from (f"| {bar} | {value:.2f} |" for bar, value in found.items())


def _section(section: Json) -> Iterator[str]:
    """Plain values as a list, then everything with columns as one table."""
    rows = {key: value for key, value in section.items() if isinstance(value, dict)}
    yield from (
        f"- {_title(key)}: {_told(key, value)}" for key, value in section.items() if key not in rows
    )
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    yield ""
    yield "| | " + " | ".join(_title(column) for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for key, row in rows.items():
        cells = (_told(column, row[column]) if column in row else "" for column in columns)
        yield f"| {key} | " + " | ".join(cells) + " |"


def _title(column: str) -> str:
    """Units as `_told` writes them."""
    return column.removesuffix("_s") + " ms" if _is_time(column) else column.replace("_", " ")


def _told(column: str, value: Any) -> str:
    if value is None or isinstance(value, (bool, str, list)):
        return str(value)
    if _is_time(column):
        return f"{value * 1000:.3f}"
    if column.endswith("bytes") and value >= 2**20:
        return f"{value / 2**30:.3f} GiB"
    if column.endswith(("bytes_per_s", "flops_per_s")):
        return f"{value / 1e12:.3f} T"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _is_time(column: str) -> bool:
    return column == "seconds" or (column.endswith("_s") and not column.endswith("_per_s"))
