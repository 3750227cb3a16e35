"""What becomes of evicted tokens: dropped, or merged into the kept token nearest to them.

Knows keys and values; knows no scores and no budgets. The nearest kept key is the one of highest
cosine similarity of keys, in the same head (LOOK-M, equation 9; the first of equals); the value
follows its key. All evicted tokens merge, once, but for `threshold`. For a kept `c` with n evicted
`e` (and cosines):

    average    (c + sum e) / (n + 1)                                          equation 10
    pivot      (c + sum (e + c)/2) / (n + 1) = (c (1 + n/2) + sum e/2) / (n + 1)       11
    weighted   (c + sum cos * e) / (n + 1)                                             12
    threshold  (exp(1) c + sum exp(cos) e) / (exp(1) + sum exp(cos))   over cos >= mean cos    D2O
    centroid   average, text and images apart, keys as long as those they stand for    look-m-plus

S kept rows, E evicted rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F

MAX_TILE_ELEMENTS = 1 << 22  # similarities in memory at once: 16 MiB of float32


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Each evicted row's nearest kept row, the cosine of their keys, and each kept row's number."""

    target_KE: torch.Tensor
    cosine_KE: torch.Tensor
    num_KS: torch.Tensor


Weights = tuple[torch.Tensor, torch.Tensor]
KeptAndEvicted = tuple[torch.Tensor, torch.Tensor]  # `[K, S, D]` and `[K, E, D]`


@dataclass(frozen=True, slots=True)
class MergeRule:
    """`merged = (c * centre + sum e * weight) / (n + 1)`, `weigh` giving `weight_KE, centre_KS`.

    `selective`: some evicted rows get no weight. `apart`: text merges into text and images into
    images only. `again`: the nearest row is looked for a second time, among the rows merged once (a
    step of k-means). `length`: keys are made as long as those they stand for are on average, for
    averaging shortens them, and with them the attention they get.
    """

    weigh: Callable[[Pairs], Weights]
    selective: bool = False
    apart: bool = False
    again: bool = False
    length: bool = False


def average(pairs: Pairs) -> Weights:
    """LOOK-M, equation 10."""
    return torch.ones_like(pairs.cosine_KE), torch.ones_like(pairs.num_KS)


def pivot(pairs: Pairs) -> Weights:
    """LOOK-M, equation 11."""
    return torch.full_like(pairs.cosine_KE, 0.5), 1 + pairs.num_KS / 2


def weighted(pairs: Pairs) -> Weights:
    """LOOK-M, equation 12."""
    return pairs.cosine_KE, torch.ones_like(pairs.num_KS)


def threshold(pairs: Pairs) -> Weights:
    """D2O (2406.13035): rows at least as near as the head's mean merge by exp(cos), others drop.

    `w_c = e / (sum exp(cos) + e)` and `w_e = exp(cos) / (sum exp(cos) + e)`. Once, at the prefill:
    there is no moving average of the threshold.
    """
    near_KE = pairs.cosine_KE >= pairs.cosine_KE.mean(dim=1, keepdim=True)
    return _normalised(pairs, pairs.cosine_KE.exp() * near_KE, math.e)


def centroid(pairs: Pairs) -> Weights:
    """The plain mean of a kept row and the evicted rows whose cosine is above 0; others drop."""
    return _normalised(pairs, (pairs.cosine_KE > 0).to(pairs.cosine_KE.dtype), 1.0)


def _normalised(pairs: Pairs, weight_KE: torch.Tensor, centre: float) -> Weights:
    """Weights for `(centre c + sum weight e) / (centre + sum weight)`."""
    total_KS = torch.full_like(pairs.num_KS, centre).scatter_add_(1, pairs.target_KE, weight_KE)
    share_KS = (pairs.num_KS + 1) / total_KS
    return weight_KE * share_KS.gather(1, pairs.target_KE), centre * share_KS


MERGES: Mapping[str, MergeRule | None] = MappingProxyType(
    {
        "none": None,
        "average": MergeRule(average),
        "pivot": MergeRule(pivot),
        "weighted": MergeRule(weighted),
        "threshold": MergeRule(threshold, selective=True),
        "centroid": MergeRule(centroid, selective=True, apart=True, again=True, length=True),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Keys and values of the same tokens, `[K, rows, D]`; which are images', bool `[K, rows]`."""

    key: torch.Tensor
    value: torch.Tensor
    is_image: torch.Tensor


class MergeKernels(Protocol):
    """Faster versions of `nearest_by_cosine`, `combine`, `lengthened`; None where they cannot run.

    `combine` takes several rows that go the same ways: keys and values.
    """

    def nearest(
        self, kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None: ...

    def combine(
        self,
        rows: Sequence[KeptAndEvicted],
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> list[torch.Tensor] | None: ...

    def lengthened(
        self,
        kept_KSD: torch.Tensor,
        evicted_KED: torch.Tensor,
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
        /,
    ) -> torch.Tensor | None: ...


def merge(
    kept: Rows, evicted: Rows, rule: MergeRule, kernels: MergeKernels | None = None
) -> tuple[Rows, int, torch.Tensor | None]:
    """`kept` with the rows of `evicted` merged into the rows nearest to them, and how many were.

    Sums are float32 (float64 for float64 inputs), the result has the inputs' dtype, and rows that
    receive nothing are `kept`'s, bit for bit. Similarities are computed `MAX_TILE_ELEMENTS` at a
    time. `kernels` may do the work faster. The number is of rows per head, a rounded mean where
    heads differ. Where the rule is selective also the evicted rows' weights `[K, E]`, 0 where one
    was dropped.
    """
    keys, values = (kept.key, evicted.key), (kept.value, evicted.value)
    pairs = _pairs(kept, evicted, rule, kernels)
    if rule.again:
        (once_KSD,) = _combined([keys], pairs, rule.weigh(pairs), kernels)
        pairs = _pairs(replace(kept, key=once_KSD), evicted, rule, kernels)
    weights = rule.weigh(pairs)
    if rule.length:
        ways = (pairs.target_KE, *weights)
        fast_KSD = kernels.lengthened(*keys, *ways) if kernels is not None else None
        key_KSD = lengthened(*keys, *ways) if fast_KSD is None else fast_KSD
        (value_KSD,) = _combined([values], pairs, weights, kernels)
    else:
        key_KSD, value_KSD = _combined([keys, values], pairs, weights, kernels)
    merged = Rows(key_KSD, value_KSD, kept.is_image)
    if not rule.selective:
        return merged, evicted.key.shape[1], None
    return merged, round(int((weights[0] != 0).sum()) / len(weights[0])), weights[0]


def _pairs(kept: Rows, evicted: Rows, rule: MergeRule, kernels: MergeKernels | None) -> Pairs:
    """The nearest kept row of each evicted one; of its own modality where the rule says so.

    For that the other modality's keys are made zero: where no cosine is above 0, there is none.
    """

    def nearest(key_KSD: torch.Tensor) -> Weights:
        found = kernels.nearest(key_KSD, evicted.key) if kernels is not None else None
        return found or nearest_by_cosine(key_KSD, evicted.key)

    # A zero key has cosine 0 to everything, so it is never the nearest while a true one is above 0.
    if rule.apart:
        target_KE, cosine_KE = nearest(kept.key.masked_fill(~kept.is_image[:, :, None], 0))
        if not bool(evicted.is_image.all()):  # most often all text is kept
            text = nearest(kept.key.masked_fill(kept.is_image[:, :, None], 0))
            target_KE = torch.where(evicted.is_image, target_KE, text[0])
            cosine_KE = torch.where(evicted.is_image, cosine_KE, text[1])
    else:
        target_KE, cosine_KE = nearest(kept.key)
    num_KS = torch.zeros(kept.key.shape[:2], dtype=cosine_KE.dtype, device=cosine_KE.device)
    num_KS.scatter_add_(1, target_KE, torch.ones_like(cosine_KE))
    return Pairs(target_KE, cosine_KE, num_KS)


def _combined(
    rows: Sequence[KeptAndEvicted], pairs: Pairs, weights: Weights, kernels: MergeKernels | None
) -> list[torch.Tensor]:
    ways = (pairs.target_KE, *weights)
    fast = kernels.combine(rows, *ways) if kernels is not None else None
    return [combine(*each, *ways) for each in rows] if fast is None else fast


def lengthened(
    kept_KSD: torch.Tensor,
    evicted_KED: torch.Tensor,
    target_KE: torch.Tensor,
    weight_KE: torch.Tensor,
    centre_KS: torch.Tensor,
) -> torch.Tensor:
    """Merged keys: the direction of the weighted mean, at the weighted mean of the lengths.

    A kept row that receives no weight is passed on bit for bit.
    """
    wide = (kept_KSD.to(weight_KE.dtype), evicted_KED.to(weight_KE.dtype))
    of_kept, of_evicted = (torch.linalg.vector_norm(rows, dim=2, keepdim=True) for rows in wide)
    length_KS1 = combine(of_kept, of_evicted, target_KE, weight_KE, centre_KS)
    key_KSD = F.normalize(combine(*wide, target_KE, weight_KE, centre_KS), dim=2) * length_KS1
    received_KS = torch.zeros_like(centre_KS).scatter_add_(1, target_KE, weight_KE)
    return torch.where(received_KS[:, :, None] > 0, key_KSD.to(kept_KSD.dtype), kept_KSD)


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
    # All heads in one call: row s of head k is row `k * S + s` of the flattened sums.
    sum_KSD.view(-1, head_size).index_add_(
        0,
        (target_KE + first_row_K1).flatten(),
        (evicted_KED.to(weight_KE.dtype) * weight_KE[:, :, None]).flatten(0, 1),
    )
    merged_KSD = sum_KSD / (num_KS + 1)[:, :, None]
    # Not `merged` everywhere: (c + 0) / 1 would round rows that nothing was merged into.
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
