"""A picture of what was kept of a prompt, with pillow alone: `lookm.show`.

Read `shares` (which share of layers and heads kept each token), `panels` (images under veils),
`words` (text on shaded ground), `legend`, and `show`, which puts them on one sheet. Knows
`lookm.positions`; no engine, no model.
"""

from lookm.picture.panels import Panel, panels
from lookm.picture.shares import Shares, shares_of
from lookm.picture.show import show

__all__ = ["Panel", "Shares", "panels", "shares_of", "show"]
