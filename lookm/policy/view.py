"""What a policy may look at: one layer of one prompt.

Knows the shapes. Refuses to know where the statistics come from, which model the prompt belongs to,
or where what is kept will be stored. K KV heads, H query heads, T prompt tokens, D head size.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One layer of one prompt, after RoPE.

    `key_KTD` and `value_KTD` are what the full cache would hold; `is_image_T` (bool) marks the
    image tokens; `query_HTD` and `scale` are those of the prompt's own attention. The statistics
    are those of `lookm.types.Needs`, present where they were asked for: float32, or float64 where
    the library call wants more digits. Never changed by a policy.
    """

    key_KTD: torch.Tensor
    value_KTD: torch.Tensor
    is_image_T: torch.Tensor
    query_HTD: torch.Tensor | None = None
    scale: float = 1.0
    sums_KT: torch.Tensor | None = None
    squares_KT: torch.Tensor | None = None
    window_KT: torch.Tensor | None = None
    density_K: torch.Tensor | None = None
    entropy_K: torch.Tensor | None = None
    layer: int = 0
    num_layers: int = 1

    @property
    def num_heads(self) -> int:
        return self.key_KTD.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.key_KTD.shape[1]


def required(statistic: torch.Tensor | None) -> torch.Tensor:
    """A statistic that the recipe's `Needs` asked for."""
    assert statistic is not None, "the recipe's Needs must ask for what its parts read"
    return statistic
