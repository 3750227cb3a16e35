"""README's table of model families, written from the registry's facts."""

from pathlib import Path

from docs.generate.marked import between
from lookm.models.families import FAMILIES

README = Path(__file__).parents[2] / "README.md"


def families_table() -> str:
    """The supported families and what is special about each, as Markdown: a table and a note."""
    rows = ["| Family | `model_type` | What is special | Processor needs |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        special = "; ".join(family.specials) or "-"
        needs = ", ".join(f"`{package}`" for package in family.packages) or "-"
        rows.append(f"| {family.title} | `{family.model_type}` | {special} | {needs} |")
    note = (
        "Layers with a sliding window (most of Gemma 3's, others' where the checkpoint says so) "
        "are not compressed: under a policy they keep just the rows their window still sees. A "
        "model with no other layers runs at `full` only."
    )
    return "\n".join([*rows, "", note]) + "\n"


def write() -> None:
    """Put the table where README has its markers."""
    README.write_text(between(README.read_text(), "families", families_table()))
