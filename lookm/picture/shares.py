"""Which share of the layers and heads kept each token of a prompt, and which merged it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookm.errors import RequestError
from lookm.kept import Mask
from lookm.positions import Positions

Share = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """In [0, 1] by token, `[T]`. What is neither kept nor merged was dropped.

    Of the first `num_unknown` tokens nothing is known. `num_layers` and `num_heads` are how many
    were looked at; `merges`: whether any layer merges.
    """

    kept_T: Share
    merged_T: Share
    num_unknown: int
    num_layers: int
    num_heads: int
    merges: bool


def shares_of(positions: Positions, layer: int | None = None, head: int | None = None) -> Shares:
    """Over all layers and KV heads, or of one. Raises `RequestError` for one that there is not."""
    kept_LKT = _chosen(positions.kept_LKT, layer, head)
    merged_LKT = positions.merged_LKT
    merged_T = np.zeros(positions.num_tokens)
    if merged_LKT is not None:
        merged_T = _chosen(merged_LKT, layer, head).mean(axis=(0, 1))
    return Shares(
        kept_T=kept_LKT.mean(axis=(0, 1)),
        merged_T=merged_T,
        num_unknown=positions.num_unknown,
        num_layers=kept_LKT.shape[0],
        num_heads=kept_LKT.shape[1],
        merges=merged_LKT is not None,
    )


def _chosen(mask_LKT: Mask, layer: int | None, head: int | None) -> Mask:
    for axis, (name, index) in enumerate((("layer", layer), ("head", head))):
        if index is None:
            continue
        count = mask_LKT.shape[axis]
        if not 0 <= index < count:
            raise RequestError(f"there is no {name} {index}: there are 0 to {count - 1}")
        mask_LKT = np.take(mask_LKT, [index], axis=axis)
    return mask_LKT
