"""The report of `text` as Markdown tables. Knows the report; nothing of models or policies.

Intervals are 95 %: a seeded bootstrap over the texts of the paired differences.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lookm.eval.questions import FULL
from lookm.eval.scores import bootstrap

Row = Mapping[str, Any]


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A table for each budget: what a token's likelihood loses, best first."""
    full = row_of(report, FULL)
    yield (
        f"{report['model']}, {len(report['texts'])} texts, {report['prompt_tokens']:,} tokens of "
        f"prompt, {report['answer_tokens']} scored; at full {_mean(full['nll']):.3f} nats each"
    )
    for keep in keeps(report):
        yield ""
        yield f"| kept {float(keep):.0%} | rows kept | nats over full | same next token |"
        yield "|---|---|---|---|"
        rows = [row for row in report["rows"] if row["policy"].endswith(f"@{keep}")]
        for row in sorted(rows, key=lambda row: _mean(over(row, full))):
            yield (
                f"| `{row['policy'].partition('@')[0]}` | {row['kept_ratio']:.1%} | "
                f"{said(over(row, full))} | {_mean(row['agrees']):.0%} |"
            )


def wide(report: Mapping[str, Any]) -> Iterator[str]:
    """One table of all budgets, and one of next tokens that are full's; presets by their mean.

    Bold: at this budget not worse than the best one beyond chance (the interval of the paired
    difference reaches 0).
    """
    full, budgets = row_of(report, FULL), keeps(report)
    methods = dict.fromkeys(row["policy"].partition("@")[0] for row in report["rows"])
    found = {
        method: [row_of(report, f"{method}@{keep}") for keep in budgets]
        for method in methods
        if method != FULL
    }
    order = sorted(found, key=lambda each: sum(_mean(over(row, full)) for row in found[each]))
    best = [
        min((rows[place] for rows in found.values()), key=lambda row: _mean(row["nll"]))
        for place in range(len(budgets))
    ]
    header = " | ".join(f"{float(keep):.0%} kept" for keep in budgets)
    yield f"| nats a token over full ({_mean(full['nll']):.3f}) | {header} |"
    yield "|---" * (len(budgets) + 1) + "|"
    for method in order:
        cells = []
        for row, leader in zip(found[method], best, strict=True):
            level = row is leader or bootstrap(over(row, leader))[0] <= 0
            cells.append(f"**{said(over(row, full))}**" if level else said(over(row, full)))
        yield f"| `{method}` | {' | '.join(cells)} |"
    yield ""
    yield f"| same next token as full | {header} | rows kept |"
    yield "|---" * (len(budgets) + 2) + "|"
    for method in order:
        shares = " | ".join(f"{_mean(row['agrees']):.0%}" for row in found[method])
        held = ", ".join(f"{row['kept_ratio']:.1%}" for row in found[method])
        yield f"| `{method}` | {shares} | {held} |"
    yield ""
    yield (
        f"{report['model']}, {len(report['texts'])} {report['split'] or 'own'} texts, "
        f"{report['prompt_tokens']:,} tokens of prompt, {report['answer_tokens']} scored."
    )


def keeps(report: Mapping[str, Any]) -> list[str]:
    """The budgets, as they are written."""
    found = (row["policy"].partition("@")[2] for row in report["rows"])
    return [keep for keep in dict.fromkeys(found) if keep]


def row_of(report: Mapping[str, Any], policy: str) -> Row:
    """The row of a policy, which the report must have."""
    found: Row = next(row for row in report["rows"] if row["policy"] == policy)
    return found


def over(row: Row, other: Row) -> list[float]:
    """Nats a token that `row` is worse by than `other`, text by text."""
    return [one - two for one, two in zip(row["nll"], other["nll"], strict=True)]


def said(differences: Sequence[float]) -> str:
    """`+0.250 (+0.201 to +0.303)`: the mean, and its interval."""
    low, high = bootstrap(differences)
    return f"{_mean(differences):+.3f} ({low:+.3f} to {high:+.3f})"


def saved(report: Mapping[str, Any]) -> str:
    """The report as JSON, a line for each row."""
    head = {name: value for name, value in report.items() if name != "rows"}
    rows = ",\n  ".join(json.dumps(row) for row in report["rows"])
    return json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n  {rows}\n ]\n}}\n'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
