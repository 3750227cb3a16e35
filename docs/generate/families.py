"""README's table of model families, written from the registry's facts and the last run over all."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generate.marked import between
from lookm.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RUN = ROOT / "server" / "bench" / "results" / "families.json"


def families_table() -> str:
    """The supported families and what is special about each, as Markdown: a table and notes."""
    run = json.loads(RUN.read_text(encoding="utf-8"))
    compared, equal = counts(run, "answers"), counts(run, "equal")
    rows = [
        "| Family | `model_type` | What is special | Processor needs | Answers equal |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES.values():
        special = "; ".join(family.specials) or "-"
        needs = ", ".join(f"`{package}`" for package in family.packages) or "-"
        name = family.model_type
        same = f"{equal[name]} of {compared[name]}"
        rows.append(f"| {family.title} | `{name}` | {special} | {needs} | {same} |")
    note = (
        "Layers with a sliding window (most of Gemma 3's, others' where the checkpoint says so) "
        "are not compressed: under a policy they keep just the rows their window still sees. A "
        "model with no other layers runs at `full` only."
    )
    made = (
        "Answers equal: tiny random checkpoints in the hub's shape, served over HTTP in float32, "
        "whole and in chunks, together and over two turns: at `full` beside transformers' "
        "`generate()`, compressed beside `lookm.compressing` or, where tokens see later ones or a "
        "window, a cache compressed layer by layer "
        f"(`{run['command']}`, commit {run['commit']})."
    )
    return "\n".join([*rows, "", note, "", made]) + "\n"


def counts(run: Mapping[str, Any], name: str) -> Counter[str]:
    """One of a run's numbers, by model type."""
    found: Counter[str] = Counter()
    for row in run["rows"]:
        found[row["model_type"]] += row[name]
    return found


def write() -> None:
    """Put the table where README has its markers."""
    README.write_text(between(README.read_text(), "families", families_table()))
