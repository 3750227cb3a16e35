"""What becomes of evicted tokens: dropped, or merged into the kept token nearest to them.

Knows keys and values; knows no scores and no budgets. The nearest kept key is the one of highest
cosine similarity of keys, in the same head (LOOK-M, equation 9; the first of equals); the value
follows its key. All evicted tokens merge, once, but for `threshold`. For a kept `c` with n evicted
`e` (and cosines):

    average    (c + sum e) / (n + 1)                                          equation 10
    pivot      (c + sum (e + c)/2) / (n + 1) = (c (1 + n/2) + sum e/2) / (n + 1)       11
    weighted   (c + sum cos * e) / (n + 1)                                             12
    threshold  (exp(1) c + sum exp(cos) e) / (exp(1) + sum exp(cos))   over cos >= mean cos    D2O

S kept rows, E evicted rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch

MAX_TILE_ELEMENTS = 1 << 22  # similarities in memory at once: 16 MiB of float32


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Each evicted row's nearest kept row, the cosine of their keys, and each kept row's number."""

    target_KE: torch.Tensor
    cosine_KE: torch.Tensor
    num_KS: torch.Tensor


#: `merged = (c * centre + sum e * weight) / (n + 1)`: from the pairs to `weight_KE, centre_KS`.
MergeRule = Callable[[Pairs], tuple[torch.Tensor, torch.Tensor]]


def average(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """LOOK-M, equation 10."""
    return torch.ones_like(pairs.cosine_KE), torch.ones_like(pairs.num_KS)


def pivot(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """LOOK-M, equation 11."""
    return torch.full_like(pairs.cosine_KE, 0.5), 1 + pairs.num_KS / 2


def weighted(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """LOOK-M, equation 12."""
    return pairs.cosine_KE, torch.ones_like(pairs.num_KS)


def threshold(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """D2O (2406.13035): rows at least as near as the head's mean merge by exp(cos), others drop.

    `w_c = e / (sum exp(cos) + e)` and `w_e = exp(cos) / (sum exp(cos) + e)`. Once, at the prefill:
    there is no moving average of the threshold.
    """
    near_KE = pairs.cosine_KE >= pairs.cosine_KE.mean(dim=1, keepdim=True)
    weight_KE = pairs.cosine_KE.exp() * near_KE
    total_KS = torch.full_like(pairs.num_KS, math.e).scatter_add_(1, pairs.target_KE, weight_KE)
    share_KS = (pairs.num_KS + 1) / total_KS
    return weight_KE * share_KS.gather(1, pairs.target_KE), math.e * share_KS


MERGES: Mapping[str, MergeRule | None] = MappingProxyType(
    {
        "none": None,
        "average": average,
        "pivot": pivot,
        "weighted": weighted,
        "threshold": threshold,
    }
)

#: Rules that give some evicted rows no weight.
SELECTIVE = frozenset({threshold})


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Keys and values of the same tokens: `key` and `value`, `[K, rows, D]`."""

    key: torch.Tensor
    value: torch.Tensor


class MergeKernels(Protocol):
    """Faster twins of `nearest_by_cosine` and `combine`; None where they cannot run."""

    def nearest(
        self, kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None: ...

    def combine(
        self,
        kept_KSD: torch.Tensor,
        evicted_KED: torch.Tensor,
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> torch.Tensor | None: ...


def merge(
    kept: Rows, evicted: Rows, rule: MergeRule, kernels: MergeKernels | None = None
) -> tuple[Rows, int]:
    """`kept` with the rows of `evicted` merged into the rows nearest to them, and how many were.

    The number is of rows per head, a rounded mean where heads differ.

    Sums are float32 (float64 for float64 inputs), the result has the inputs' dtype, and rows that
    receive nothing are `kept`'s, bit for bit. Similarities are computed `MAX_TILE_ELEMENTS` at a
    time. `kernels` may do the work faster.
    """
    found = kernels.nearest(kept.key, evicted.key) if kernels is not None else None
    target_KE, cosine_KE = found or nearest_by_cosine(kept.key, evicted.key)
    num_KS = torch.zeros(kept.key.shape[:2], dtype=cosine_KE.dtype, device=cosine_KE.device)
    num_KS.scatter_add_(1, target_KE, torch.ones_like(cosine_KE))
    weight_KE, centre_KS = rule(Pairs(target_KE, cosine_KE, num_KS))

    def combined(kept_KSD: torch.Tensor, evicted_KED: torch.Tensor) -> torch.Tensor:
        fast = None
        if kernels is not None:
            fast = kernels.combine(kept_KSD, evicted_KED, target_KE, weight_KE, centre_KS)
        if fast is not None:
            return fast
        return combine(kept_KSD, evicted_KED, target_KE, weight_KE, centre_KS)

    rows = Rows(combined(kept.key, evicted.key), combined(kept.value, evicted.value))
    num_merged = evicted.key.shape[1]
    if rule in SELECTIVE:
        num_merged = round(int((weight_KE != 0).sum()) / len(weight_KE))
    return rows, num_merged


def combine(
    kept_KSD: torch.Tensor,
    evicted_KED: torch.Tensor,
    target_KE: torch.Tensor,
    weight_KE: torch.Tensor,
    centre_KS: torch.Tensor,
) -> torch.Tensor:
    """`(centre * kept + sum of weight * evicted) / (n + 1)` over the n rows that name each target.

    Summed in the dtype of `weight_KE`; a kept row that no row names is passed on bit for bit.
    """
    num_heads, num_kept, head_size = kept_KSD.shape
    first_row_K1 = torch.arange(num_heads, device=target_KE.device)[:, None] * num_kept
    num_KS = torch.zeros_like(centre_KS).scatter_add_(1, target_KE, torch.ones_like(weight_KE))
    sum_KSD = kept_KSD.to(weight_KE.dtype) * centre_KS[:, :, None]
    sum_KSD.view(-1, head_size).index_add_(
        0,
        (target_KE + first_row_K1).flatten(),
        (evicted_KED.to(weight_KE.dtype) * weight_KE[:, :, None]).flatten(0, 1),
    )
    merged_KSD = sum_KSD / (num_KS + 1)[:, :, None]
    return torch.where(num_KS[:, :, None] > 0, merged_KSD.to(kept_KSD.dtype), kept_KSD)


def nearest_by_cosine(
    kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept row nearest to each evicted one: `target_KE` int64 in `[0, S)` and `cosine_KE`.

    float32, or float64 for float64 inputs. A key of length zero has cosine 0 to everything.
    """
    kept_KDS = _unit(kept_KSD).transpose(1, 2)
    num_heads, num_kept = kept_KSD.shape[:2]
    rows = max(1, MAX_TILE_ELEMENTS // (num_heads * num_kept))
    cosines, targets = [], []
    for tile_KED in torch.split(evicted_KED, rows, dim=1):
        cosine_KE, target_KE = (_unit(tile_KED) @ kept_KDS).max(dim=2)
        cosines.append(cosine_KE)
        targets.append(target_KE)
    return torch.cat(targets, dim=1), torch.cat(cosines, dim=1)


def _unit(row_KRD: torch.Tensor) -> torch.Tensor:
    row_KRD = row_KRD if row_KRD.dtype == torch.float64 else row_KRD.float()
    length_KR1 = torch.linalg.vector_norm(row_KRD, dim=2, keepdim=True)
    return torch.div(row_KRD, length_KR1.clamp(min=torch.finfo(row_KRD.dtype).tiny))
