"""One recipe, opened for one prompt: what depends on the prompt alone is computed here, once.

How much may be kept of it (exact, before the prefill), what outranks a score, what must be known of
its attention, and the ledger of its layers. Knows which tokens are images'; knows no keys, no
values and no attention.
"""

from dataclasses import replace

import torch

from lookm.policy.budgets import Budget
from lookm.policy.depth import Ledger, layer_counts, limits_of
from lookm.policy.pins import num_protected, tiers
from lookm.policy.recipe import Recipe
from lookm.types import Needs


class PromptPolicy:
    """`recipe` for the prompt of `is_image_T`, bool, at least one token; then asked layer by layer.

    `ledger` hands out the budgets of the `num_layers` layers that are compressed, in order; see
    `open_ledger`. Opened from a tensor on the host, nothing here waits for a device; `tier_T` is
    then moved to `device`.
    """

    def __init__(
        self,
        recipe: Recipe,
        is_image_T: torch.Tensor,
        num_layers: int,
        *,
        ledger: Ledger | None = None,
        layer: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.recipe = recipe
        self.keeps_all = nominal_rows(recipe, is_image_T) == is_image_T.shape[0]
        self.needs = Needs() if self.keeps_all else _needs(recipe, is_image_T)
        self.tier_T = tiers(recipe.preset.pins, is_image_T).to(device or is_image_T.device)
        self.ledger = ledger or open_ledger(recipe, is_image_T, num_layers, layer=layer)


def open_ledger(
    recipe: Recipe, is_image_T: torch.Tensor, num_layers: int, *, layer: int = 0
) -> Ledger:
    """What each layer keeps of a prompt, from `layer` on, as they go by.

    An `Adaptive` rule must see the layers from the first on: opened later, it knows nothing of
    those before, and gives the next one the nominal budget.
    """
    num_tokens = is_image_T.shape[0]
    budget, protected = Budget(num_tokens, 0), 0
    if nominal_rows(recipe, is_image_T) < num_tokens:
        budget, protected = _counts(recipe, is_image_T)
    return Ledger(
        recipe.preset.depth,
        budget,
        limits_of(recipe.preset.depth, budget, protected, num_tokens),
        window=recipe.preset.pins.window,
        num_layers=num_layers,
        layer=layer,
    )


def nominal_rows(recipe: Recipe, is_image_T: torch.Tensor) -> int:
    """How many tokens of this prompt each head keeps, mean over layers; exact, before the prefill.

    `is_image_T` is bool, at least one token. T itself where nothing is compressed.
    """
    num_tokens = is_image_T.shape[0]
    if recipe.preset.score is None or (recipe.preset.modality_aware and not bool(is_image_T.any())):
        return num_tokens
    return _counts(recipe, is_image_T)[0].total


def recent_rows(recipe: Recipe, is_image_T: torch.Tensor) -> int:
    """The last tokens of a compressed prompt that every head of every layer keeps, a row each."""
    return _counts(recipe, is_image_T)[0].recent


def max_rows(recipe: Recipe, is_image_T: torch.Tensor, num_layers: int) -> list[int]:
    """The most that each of `num_layers` layers keeps: all T, or in every layer fewer.

    Their mean is `nominal_rows`, unless the depth rule is `Adaptive`.
    """
    if nominal_rows(recipe, is_image_T) == is_image_T.shape[0]:
        return [is_image_T.shape[0]] * num_layers
    budget, protected = _counts(recipe, is_image_T)
    limits = limits_of(recipe.preset.depth, budget, protected, is_image_T.shape[0])
    counts = layer_counts(recipe.preset.depth, limits, recipe.preset.pins.window, num_layers)
    return [count + budget.recent for count in counts]


def _counts(recipe: Recipe, is_image_T: torch.Tensor) -> tuple[Budget, int]:
    """The nominal budget of a layer, and how many of its candidates must be kept."""
    budget = recipe.preset.budget(recipe.policy, is_image_T.shape[0])
    protected = num_protected(recipe.preset.pins, is_image_T, budget.recent)
    return Budget(max(budget.important, protected), budget.recent), protected


def _needs(recipe: Recipe, is_image_T: torch.Tensor) -> Needs:
    """What `recipe` needs of this prompt: `after_images` as a number of rows, where it has any."""
    needs = recipe.preset.needs
    if not needs.after_images:
        return needs
    images_I = is_image_T.nonzero()
    if not len(images_I):
        return replace(needs, after_images=False)
    # At least one query: a prompt may end with its image.
    return replace(needs, window=max(1, len(is_image_T) - 1 - int(images_I[-1])))
