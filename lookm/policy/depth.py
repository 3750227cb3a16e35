"""How a prompt's budget is spread over the layers: depth rules, and the ledger that applies them.

Layers are prefilled one at a time and their raw keys and values are gone before the next one runs,
so a layer's share is decided from the layers seen so far. The published methods look at all layers
first; ours is their formula over those seen, and the last layer takes what is left.

    nominal N a layer, L layers                     every rule: the counts add up to L x N, exactly
    uniform     N      N      N      N
    pyramid     N + s  ...           N - s          known before the prefill
    adaptive    by what the layers ask for          N/2 <= count <= 3N/2, known as they go by

Counts are of tokens chosen by score; the recent window is the same in every layer. Protected text
is always within them. Knows no scores, no merges and no pages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lookm.policy.budgets import Budget
from lookm.policy.view import View, required

PYRAMID_BETA = 20
MIN_SHARE, MAX_SHARE = 0.5, 1.5  # of an adaptive layer, in nominal budgets


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A rule that looks: `measure` sees each layer once, in order.

    `wants(measures, nominal)` is how many tokens the newest layer asks for when a mean layer gets
    `nominal`, from the measures of all layers so far, the newest last.
    """

    measure: Callable[[View], torch.Tensor]
    wants: Callable[[Sequence[torch.Tensor], int], float]


Pyramid = Callable[["Range", int, int], list[int]]
DepthRule = Adaptive | Pyramid


@dataclass(frozen=True, slots=True)
class Range:
    """The nominal count of a layer and what it may be at least and at most."""

    low: int
    nominal: int
    high: int


def pyramid(limits: Range, window: int, num_layers: int) -> list[int]:
    """PyramidKV (2406.02069): counts fall linearly with depth, the same total.

    With `w` tokens of observation window in every layer, the last layer keeps `(N - w) / 20 + w`,
    the first as much above N as the last is below it. Where that is more than a layer can hold, or
    less than its protected text, both ends move towards N (as the authors' code does at the top).
    """
    above = (limits.nominal - min(window, limits.nominal)) * (1 - 1 / PYRAMID_BETA)
    # One slope for both ends: what the first layer gains the last one gives.
    slope = min(above, limits.high - limits.nominal, limits.nominal - limits.low)
    counts, spent = [], 0
    for layer in range(num_layers):
        # the sum over layers 0..layer of N + slope (1 - 2 l / (L - 1)), rounded
        total = (layer + 1) * limits.nominal
        if num_layers > 1:
            total += round(slope * (layer + 1) * (1 - layer / (num_layers - 1)))
        counts.append(total - spent)
        spent = total
    return counts


def proportional(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """`N d_l / mean(d)`: the newest layer's measure against the mean of those seen."""
    total = float(torch.stack(list(measures)).sum())
    return nominal * float(measures[-1]) * len(measures) / total if total > 0 else nominal


def softmax(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """`N L softmax(e)_l` over the layers seen."""
    return nominal * len(measures) * float(torch.stack(list(measures)).softmax(dim=0)[-1])


def even_first(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """D2O (2406.13035): `N L softmax(-F)_l`: layers that attend evenly keep more.

    F is a variance scaled to at most 1: by the largest of the layers seen (the authors' code scales
    each layer's heads by their own extremes, which are always 0 and 1 where there are two).
    """
    variances = torch.stack(list(measures))
    return softmax(list(-variances / variances.max().clamp(min=1e-12)), nominal)


def prefix(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """PrefixKV (2412.03409): one share p of attention mass, kept by every layer.

    A measure is a layer's priority curve: `curve_T[r]` is the mass of its r + 1 best tokens. A
    layer of curve c keeps `R(p) = |{r: c_r < p}| + 1` tokens, and p is such that the layers seen
    keep `N` on average (found by bisection, as the authors do offline over a calibration set).
    """
    curves_LT = torch.stack(list(measures))
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if _rows_at(curves_LT, middle).mean() > nominal:
            high = middle
        else:
            low = middle
    return float(_rows_at(curves_LT, low)[-1])


def _rows_at(curves_LT: torch.Tensor, share: float) -> torch.Tensor:
    return (curves_LT < share).sum(dim=1).double() + 1


def density(view: View) -> torch.Tensor:
    """VL-Cache (2410.23317): the share of weights that are not negligible, mean over heads."""
    return required(view.density_K).double().mean()


def cross_modal_entropy(view: View) -> torch.Tensor:
    """MEDA (2502.17599): `E_TV + E_VT`, the entropy of attention between text and image tokens."""
    return required(view.entropy_K).double().mean()


def unevenness(view: View) -> torch.Tensor:
    """D2O (2406.13035): the variance over keys of the attention they receive, mean over heads."""
    return required(view.sums_KT).double().var(dim=1).mean()


def priority_curve(view: View) -> torch.Tensor:
    """PrefixKV: cumulative share of attention received, best tokens first, heads summed; `[T]`."""
    mass_T = required(view.sums_KT).double().sum(dim=0)
    return mass_T.sort(descending=True).values.cumsum(dim=0) / mass_T.sum()


class Ledger:
    """One prompt's budget over its layers: what is left, and for how many of them."""

    def __init__(
        self,
        rule: DepthRule | None,
        budget: Budget,
        limits: Range,
        *,
        window: int,
        num_layers: int,
        layer: int = 0,
    ) -> None:
        self._budget, self._limits = budget, limits
        self._adaptive = rule if isinstance(rule, Adaptive) else None
        self._left_L = layer_counts(rule, limits, window, num_layers)[layer:]
        self._left = limits.nominal * len(self._left_L)
        self._measures: list[torch.Tensor] = []

    def next(self, view: View) -> Budget:
        """The next layer's budget. Called once for each layer, in order."""
        assert self._left_L, "every layer has had its budget"
        planned = self._left_L.pop(0)
        count = planned if self._adaptive is None else self._wanted(self._adaptive, view)
        self._left -= count
        return Budget(count, self._budget.recent)

    def _wanted(self, rule: Adaptive, view: View) -> int:
        """What the layer asks for, as far as what is left suits the layers after it."""
        self._measures.append(rule.measure(view))
        after = len(self._left_L)
        # What is left must be neither too much for the layers after this one, nor too little.
        low = max(self._limits.low, self._left - after * self._limits.high)
        high = min(self._limits.high, self._left - after * self._limits.low)
        return max(low, min(high, round(rule.wants(self._measures, self._limits.nominal))))


def layer_counts(rule: DepthRule | None, limits: Range, window: int, num_layers: int) -> list[int]:
    """The most that each layer is given; exact unless the rule is `Adaptive`."""
    if rule is None:
        return [limits.nominal] * num_layers
    if isinstance(rule, Adaptive):
        return [limits.high if num_layers > 1 else limits.nominal] * num_layers
    return rule(limits, window, num_layers)


def limits_of(rule: DepthRule | None, budget: Budget, protected: int, num_tokens: int) -> Range:
    """Where a layer's count may lie. A layer that may drop tokens drops at least one.

    `protected` tokens are kept whatever the budget, and at least one token of any kind.
    """
    nominal = budget.important
    if rule is None or budget.total >= num_tokens:
        return Range(nominal, nominal, nominal)
    low = max(protected, 1 if budget.recent == 0 else 0)
    high = num_tokens - budget.recent - 1
    if isinstance(rule, Adaptive):
        low = max(low, math.ceil(MIN_SHARE * nominal))
        high = min(high, math.floor(MAX_SHARE * nominal))
    return Range(min(low, nominal), nominal, max(high, nominal))
