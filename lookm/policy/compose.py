"""The parts put together: the one place where tokens are selected and rows gathered.

Knows a policy's parts and one layer's `View`. Knows nothing about attention, pages or models.
S kept rows; every head of a layer keeps the same number, so that storage stays rectangular.
"""

from dataclasses import dataclass

import torch

from lookm.policy.budgets import Budget, BudgetRule
from lookm.policy.depth import DepthRule, Ledger, layer_counts, limits_of
from lookm.policy.merges import MergeKernels, MergeRule, Rows, merge
from lookm.policy.pins import Pins, num_protected, tiers
from lookm.policy.scores import Score, best
from lookm.policy.view import View
from lookm.types import CachePolicy, Needs


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated policy as parts. Made by `resolve`; `score` is None where everything is kept.

    `depth` spreads the budget over the layers, evenly where it is None. `needs` is what must be
    known of the attention for `score` and `depth`. `modality_aware` recipes leave prompts without
    images alone.
    """

    policy: CachePolicy
    score: Score | None
    budget: BudgetRule
    pins: Pins
    merge: MergeRule | None
    needs: Needs
    depth: DepthRule | None = None
    about_images: bool = False

    @property
    def modality_aware(self) -> bool:
        """Whether the recipe tells text from images."""
        return self.about_images or self.pins.text != "none"


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What one layer keeps of a prompt.

    `key` and `value` `[K, S, D]` in the dtype of the input, `positions` `[K, S]` int64, ascending:
    where each row stood in the prompt, and so its rotation. `num_evicted` is T - S; `num_merged` of
    those were merged into kept rows (mean over heads, rounded). `compressed` is False where nothing
    was dropped.
    """

    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    num_evicted: int
    num_merged: int
    compressed: bool


def kept_bound(recipe: Recipe, is_image_T: torch.Tensor) -> int:
    """How many tokens of this prompt each head keeps, mean over layers; exact, before the prefill.

    `is_image_T` is bool, at least one token. T itself where nothing is compressed.
    """
    num_tokens = is_image_T.shape[0]
    if recipe.score is None or (recipe.modality_aware and not bool(is_image_T.any())):
        return num_tokens
    return _counts(recipe, is_image_T)[0].total


def kept_bounds(recipe: Recipe, is_image_T: torch.Tensor, num_layers: int) -> list[int]:
    """The most that each of `num_layers` layers keeps; their mean is `kept_bound` unless the depth
    rule is `Adaptive`. All T, or in every layer fewer.
    """
    if kept_bound(recipe, is_image_T) == is_image_T.shape[0]:
        return [is_image_T.shape[0]] * num_layers
    budget, protected = _counts(recipe, is_image_T)
    limits = limits_of(recipe.depth, budget, protected, is_image_T.shape[0])
    counts = layer_counts(recipe.depth, limits, recipe.pins.window, num_layers)
    return [count + budget.recent for count in counts]


def open_ledger(
    recipe: Recipe, is_image_T: torch.Tensor, num_layers: int, *, layer: int = 0
) -> Ledger:
    """What each layer keeps of a prompt, from `layer` on, as they go by.

    An `Adaptive` rule must see the layers from the first on: opened later, it knows nothing of
    those before, and gives the next one the nominal budget.
    """
    num_tokens = is_image_T.shape[0]
    budget, protected = Budget(num_tokens, 0), 0
    if kept_bound(recipe, is_image_T) < num_tokens:
        budget, protected = _counts(recipe, is_image_T)
    return Ledger(
        recipe.depth,
        budget,
        limits_of(recipe.depth, budget, protected, num_tokens),
        window=recipe.pins.window,
        num_layers=num_layers,
        layer=layer,
    )


def compress(
    view: View, recipe: Recipe, ledger: Ledger, kernels: MergeKernels | None = None
) -> Compressed:
    """Apply `recipe` to one layer of one prompt, by the next budget of `ledger`.

    Never changes what `view` holds. `kernels` may do the merge faster.
    """
    if ledger.keeps_all(view.num_tokens):
        return _everything(view)
    kept_KS, evicted_KE = select(view, recipe, ledger.next(view))
    kept = _rows(view, kept_KS)
    rule = recipe.merge
    num_merged = 0
    if rule is not None:
        kept, num_merged = merge(kept, _rows(view, evicted_KE), rule, kernels)
    return Compressed(
        key=kept.key,
        value=kept.value,
        positions=kept_KS,
        num_evicted=evicted_KE.shape[1],
        num_merged=num_merged,
        compressed=True,
    )


def select(view: View, recipe: Recipe, budget: Budget) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions kept `[K, S]` and evicted `[K, T - S]`, both ascending, int64.

    0 ................... T - recent ........... T
    | candidates: the best `important` |  recent  |     by tier, then score, then position
    """
    assert recipe.score is not None
    num_tokens, device = view.num_tokens, view.key_KTD.device
    num_candidates = num_tokens - budget.recent
    score_KC = recipe.score(view)[:, :num_candidates]
    tier_C = tiers(recipe.pins, view.is_image_T)[:num_candidates]
    position_T = torch.arange(num_tokens, device=device)
    keep_KT = (position_T >= num_candidates).repeat(view.num_heads, 1)
    keep_KT.scatter_(1, best(tier_C, score_KC, budget.important), True)
    kept_so_far_KT = keep_KT.cumsum(dim=1)
    place_KT = torch.where(
        keep_KT, kept_so_far_KT - 1, budget.total + position_T - kept_so_far_KT
    )  # the kept in front, the evicted behind them
    positions_KT = torch.empty_like(place_KT)
    positions_KT.scatter_(1, place_KT, position_T.expand_as(place_KT))
    return positions_KT[:, : budget.total], positions_KT[:, budget.total :]


def _counts(recipe: Recipe, is_image_T: torch.Tensor) -> tuple[Budget, int]:
    """The nominal budget of a layer, and how many of its candidates must be kept."""
    budget = recipe.budget(recipe.policy, is_image_T.shape[0])
    protected = num_protected(recipe.pins, is_image_T, budget.recent)
    return Budget(max(budget.important, protected), budget.recent), protected


def _rows(view: View, positions_KR: torch.Tensor) -> Rows:
    """Keys and values at `positions_KR`, as selections of rows (a gather takes elements)."""
    num_heads, num_tokens, head_size = view.key_KTD.shape
    first_K1 = torch.arange(num_heads, device=positions_KR.device)[:, None] * num_tokens
    row_R = (positions_KR + first_K1).flatten()
    key_KRD, value_KRD = (
        rows_KTD.reshape(-1, head_size).index_select(0, row_R).view(num_heads, -1, head_size)
        for rows_KTD in (view.key_KTD, view.value_KTD)
    )
    return Rows(key_KRD, value_KRD, view.is_image_T[positions_KR])


def _everything(view: View) -> Compressed:
    positions_T = torch.arange(view.num_tokens, device=view.key_KTD.device)
    return Compressed(
        key=view.key_KTD,
        value=view.value_KTD,
        positions=positions_T.expand(view.num_heads, -1).contiguous(),
        num_evicted=0,
        num_merged=0,
        compressed=False,
    )
