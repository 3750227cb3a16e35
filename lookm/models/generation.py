"""How a checkpoint's authors want it to be sampled: `generation_config.json`.

As vLLM reads it: a value that is there holds where a request says nothing. Knows the file's fields;
nothing about requests.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lookm.errors import ModelError

#: The least and the most of each.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, math.inf),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a request gets that says nothing; OpenAI's, unless the checkpoint has others."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __str__(self) -> str:
        """What differs from OpenAI's: `temperature 0.1, top_p 0.001`."""
        plain = GenerationDefaults()
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        own = [f"{name} {value}" for name, value in named.items() if value != getattr(plain, name)]
        return ", ".join(own) or "OpenAI's"


def generation_defaults(file: Mapping[str, Any], name: str = "") -> GenerationDefaults:
    """From the contents of a `generation_config.json`. Raises `ModelError` for a value that is
    none."""
    given: dict[str, Any] = {}
    for field, (least, most) in BOUNDS.items():
        value = file.get(field)
        if value is None:
            continue
        is_number = isinstance(value, int if field == "top_k" else int | float)
        if field == "top_k" and value == -1:
            value = 0
        if not is_number or isinstance(value, bool) or not least <= value <= most:
            raise ModelError(
                f"{name}: generation_config.json has {field} {value!r}, which is out of range: "
                "mend it, or start with --generation-config none",
                param="model",
            )
        given[field] = value
    return GenerationDefaults(**given)
