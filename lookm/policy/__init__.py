"""What to keep of a prompt's KV cache: pure tensor functions, no attention, no storage.

A policy is parts. Reading order: `view` (what a policy may look at), `scores` and `coverage` (what
matters), `budgets` (how many), `depth` (in which layer), `pins` (what outranks a score), `merges`
(what becomes of the rest), `compose` (select and gather, written once) and `presets` (the named
lists of parts, parsing, validation). `docs/look-m-plus.md` is the study behind `look-m-plus`.

Shapes: K KV heads, T prompt tokens, C candidates, S kept rows, E evicted rows, D head size.
"""

from lookm.policy.budgets import Budget
from lookm.policy.compose import (
    Compressed,
    Recipe,
    compress,
    kept_bound,
    kept_bounds,
    open_ledger,
)
from lookm.policy.depth import Ledger
from lookm.policy.pins import Pins
from lookm.policy.presets import DEFAULT_KEEP, PRESETS, Preset, parse, resolve, to_string
from lookm.policy.view import View

__all__ = [
    "DEFAULT_KEEP",
    "PRESETS",
    "Budget",
    "Compressed",
    "Ledger",
    "Pins",
    "Preset",
    "Recipe",
    "View",
    "compress",
    "kept_bound",
    "kept_bounds",
    "open_ledger",
    "parse",
    "resolve",
    "to_string",
]
