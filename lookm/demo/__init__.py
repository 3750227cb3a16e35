"""`llava-demo`: a tiny, truly trained LLaVA that ships with the package.

Knows its name and where its checkpoint lies. Importing this imports no torch and no transformers.
Pictures it understands are one call away and need only PIL and numpy:

    from lookm.demo.scenes import Scene, render
    render(Scene(kind="circle", colour="red", x=0.25, y=0.25, size=0.4)).save("red-circle.png")
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["NAME", "checkpoint_path"]

NAME: Final = "llava-demo"


def checkpoint_path() -> Path:
    """The checkpoint folder; plain `from_pretrained` loads it."""
    return Path(__file__).parent / "checkpoint"
