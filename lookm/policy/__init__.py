"""What to keep of a prompt's KV cache: pure tensor functions, no attention, no storage.

A policy is parts. Reading order: `view` (what a policy may look at), `scores`, `coverage` and
`modality` (what matters), `budgets` (how many), `depth` (in which layer), `pins` (what outranks a
score), `merges` (what becomes of the rest), `recipe` (the parts together), `prompt` (a recipe
opened for one prompt), `compose` (select and gather, written once) and `presets` (the named lists
of parts, parsing, validation). `docs/look-m-plus.md` is the study behind `look-m-plus`.

Shapes: K KV heads, T prompt tokens, C candidates, S kept rows, E evicted rows, D head size.
"""

from lookm.policy.budgets import Budget
from lookm.policy.compose import Compressed, compress
from lookm.policy.pins import Pins
from lookm.policy.presets import DEFAULT_KEEP, PRESETS, least, most, parse, resolve, to_string
from lookm.policy.prompt import (
    PromptPolicy,
    max_rows,
    nominal_rows,
    open_ledger,
    recent_rows,
)
from lookm.policy.recipe import Preset, Recipe
from lookm.policy.view import View

__all__ = [
    "DEFAULT_KEEP",
    "PRESETS",
    "Budget",
    "Compressed",
    "Pins",
    "Preset",
    "PromptPolicy",
    "Recipe",
    "View",
    "compress",
    "least",
    "max_rows",
    "most",
    "nominal_rows",
    "open_ledger",
    "parse",
    "recent_rows",
    "resolve",
    "to_string",
]
