"""README's table of model families, written from the registry's facts."""

from pathlib import Path

from docs.generate.marked import between
from lookm.models.families import FAMILIES, Family

README = Path(__file__).parents[2] / "README.md"


def families_table() -> str:
    """The supported families and what is special about each, as Markdown: a table and a note."""
    rows = ["| Family | `model_type` | What is special | Processor needs |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        special = "; ".join(_specials(family)) or "-"
        needs = ", ".join(f"`{package}`" for package in family.packages) or "-"
        rows.append(f"| {family.title} | `{family.model_type}` | {special} | {needs} |")
    note = (
        "Layers with a sliding window (most of Gemma 3's, others' where the checkpoint says so) "
        "are not compressed: under a policy they keep just the rows their window still sees. A "
        "model with no other layers runs at `full` only."
    )
    return "\n".join([*rows, "", note]) + "\n"


def _specials(family: Family) -> list[str]:
    facts = [
        (family.position_rows > 1, "M-RoPE"),
        (family.deepstack, "deepstack features in the first text layers"),
        (family.two_layouts, "an image alone and an image among others are laid out differently"),
        (
            family.prefill == "image blocks",
            "tokens of an image see each other: prompts with images are prefilled in one go",
        ),
        (
            family.prefill == "prefix",
            "the whole prompt sees itself: prefilled in one go, one turn of text after the images",
        ),
        (
            family.prefill != "causal",
            "policies whose score counts causal queries (`mean-h2o`, `roco`) are refused there",
        ),
        (family.softcaps_logits, "softcapped logits"),
    ]
    return [text for holds, text in facts if holds]


def write() -> None:
    """Put the table where README has its markers."""
    README.write_text(between(README.read_text(), "families", families_table()))
