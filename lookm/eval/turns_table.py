"""The report of `turns` as a Markdown table. Knows the report and nothing of engines."""

import statistics
from collections.abc import Iterator
from typing import Any


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as a Markdown table."""
    numbers = range(1, report["turns"] + 1)
    heads = [f"right, turn {n}" for n in numbers] + ["KV bytes", "first token, turn 1", "later"]
    yield f"| policy | reuse | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 2) + "|"
    for each in report["rows"]:
        turns = each["turns"]
        later_s = statistics.fmean(turn["ttft_s"] for turn in turns[1:])
        cells = [f"{turn['right']:.0%}" for turn in turns]
        cells += [f"{turns[0]['kept_share']:.2f}x to {turns[-1]['kept_share']:.2f}x"]
        cells += [f"{turns[0]['ttft_s'] * 1000:.0f} ms", f"{later_s * 1000:.0f} ms"]
        yield f"| `{each['policy']}` | {each['reuse']} | {' | '.join(cells)} |"
