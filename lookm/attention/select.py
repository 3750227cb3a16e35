"""Which implementation of attention this process uses: decided once, at start.

Knows the names. Never falls back in silence: what was chosen has a `name`, and the engine logs it.
"""

import torch

from lookm.attention.api import Attention
from lookm.attention.reference import ReferenceAttention
from lookm.errors import ConfigError

NAMES = ("auto", "reference")


def choose(name: str, device: torch.device | str) -> Attention:
    """The implementation called `name` for `device`; `"auto"` is the fastest that can run there.

    Raises `ConfigError` for other names.
    """
    del device  # the reference runs on any
    if name in NAMES:
        return ReferenceAttention()
    raise ConfigError(f"unknown attention {name!r}: choose one of {', '.join(NAMES)}.")
