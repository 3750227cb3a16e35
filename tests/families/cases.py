"""Which checkpoints are tried: each family as repositories of 2024 hold it, and text towers of
later ones in their shells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf

from lookm.models.families import Family
from tests.lookm.models.toy_configs import TEXT
from tests.lookm.models.toys import TOYS


@dataclass(frozen=True)
class Case:
    """A checkpoint. `text`: its text model, where it is not the toy's own.

    `published`: old weight names in shards and the files of 2024, prefilled in chunks; else the
    newest of both, prefilled whole.
    """

    name: str
    toy: str
    text: Callable[[], Any] | None = None
    published: bool = True
    windows_only: bool = False

    @property
    def family(self) -> Family:
        row: Family = TOYS[self.toy].row
        return row

    @property
    def flags(self) -> tuple[str, ...]:
        """Of `lookm serve`."""
        return ("--max-step-tokens", "24") if self.published else ()


def tower(name: str, toy: str, text: Callable[[], Any], **more: Any) -> Case:
    return Case(name, toy, text, published=False, **more)


CASES = (
    *(Case(name, name) for name in TOYS),
    tower("llava with Mistral", "pixtral", lambda: hf.MistralConfig(**TEXT, sliding_window=None)),
    tower(
        "llava with Mistral's window",
        "llava",
        lambda: hf.MistralConfig(**TEXT, sliding_window=16),
        windows_only=True,
    ),
    tower(
        "llava with Qwen2, of whose layers one sees a window",
        "llava",
        lambda: hf.Qwen2Config(
            **TEXT, use_sliding_window=True, sliding_window=16, max_window_layers=2
        ),
    ),
    tower("internvl with Qwen3", "internvl", lambda: hf.Qwen3Config(**TEXT, head_dim=16)),
    tower(
        "mistral3 with Ministral 3",
        "mistral3",
        lambda: hf.Ministral3Config(**TEXT, head_dim=16, sliding_window=None),
    ),
)
