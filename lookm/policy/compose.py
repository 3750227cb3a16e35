"""The parts put together: the one place where tokens are selected and rows gathered.

Knows one prompt's policy and one layer's `View`. Knows nothing about attention, pages or models.
S kept rows; every head of a layer keeps the same number, so that storage stays rectangular.
"""

from dataclasses import dataclass

import torch

from lookm.policy.budgets import Budget
from lookm.policy.merges import MergeKernels, Rows, merge
from lookm.policy.prompt import PromptPolicy
from lookm.policy.scores import Score, best
from lookm.policy.view import View


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What one layer keeps of a prompt.

    `key` and `value` `[K, S, D]` in the dtype of the input, `positions` `[K, S]` int64, ascending:
    where each row stood in the prompt, and so its rotation. `num_evicted` is T - S; `num_merged` of
    those were merged into kept rows (mean over heads, rounded). `compressed` is False where nothing
    was dropped. `evicted` `[K, T - S]` int64, ascending, are the other positions; `merges`: they
    were merged, all of them, or those whose `weight` `[K, T - S]` is not 0.
    """

    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    num_evicted: int
    num_merged: int
    compressed: bool
    evicted: torch.Tensor
    merges: bool = False
    weight: torch.Tensor | None = None

    @property
    def kept_mask(self) -> torch.Tensor:
        """Which tokens of the prompt each head keeps, bool `[K, T]`."""
        return self._mask(self.positions, True)

    @property
    def merged_mask(self) -> torch.Tensor | None:
        """Which were evicted and merged into kept ones, bool `[K, T]`; None: nothing merges."""
        if not self.merges:
            return None
        return self._mask(self.evicted, True if self.weight is None else self.weight != 0)

    def _mask(self, positions: torch.Tensor, values: torch.Tensor | bool) -> torch.Tensor:
        shape = len(positions), self.positions.shape[1] + self.evicted.shape[1]
        mask_KT = torch.zeros(shape, dtype=torch.bool, device=positions.device)
        return mask_KT.scatter_(1, positions, values)


def compress(view: View, prompt: PromptPolicy, kernels: MergeKernels | None = None) -> Compressed:
    """Apply `prompt`'s recipe to its next layer, by the next budget of its ledger.

    Never changes what `view` holds. `kernels` may do the merge faster.
    """
    if prompt.keeps_all:
        return _everything(view)
    preset = prompt.recipe.preset
    assert preset.score is not None, "only `full` has no score, and it keeps everything"
    kept_KS, evicted_KE = select(view, preset.score, prompt.tier_T, prompt.ledger.next(view))
    kept, num_merged, weight_KE = _rows(view, kept_KS), 0, None
    if preset.merge is not None:
        evicted = _rows(view, evicted_KE)
        kept, num_merged, weight_KE = merge(kept, evicted, preset.merge, kernels)
    return Compressed(
        key=kept.key,
        value=kept.value,
        positions=kept_KS,
        num_evicted=evicted_KE.shape[1],
        num_merged=num_merged,
        compressed=True,
        evicted=evicted_KE,
        merges=preset.merge is not None,
        weight=weight_KE,
    )


def select(
    view: View, score: Score, tier_T: torch.Tensor, budget: Budget
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions kept `[K, S]` and evicted `[K, T - S]`, both ascending, int64.

    0 ................... T - recent ........... T
    | candidates: the best `important` |  recent  |     by tier, then score, then position
    """
    num_tokens, device = view.num_tokens, view.key_KTD.device
    num_candidates = num_tokens - budget.recent
    score_KC = score(view)[:, :num_candidates]
    tier_C = tier_T[:num_candidates]
    position_T = torch.arange(num_tokens, device=device)
    keep_KT = (position_T >= num_candidates).repeat(view.num_heads, 1)
    keep_KT.scatter_(1, best(tier_C, score_KC, budget.important), True)
    kept_so_far_KT = keep_KT.cumsum(dim=1)
    # One scatter instead of two `nonzero`s, which would wait for the device: every position has its
    # place, the kept ones in front and the evicted ones behind them, each in ascending order.
    place_KT = torch.where(keep_KT, kept_so_far_KT - 1, budget.total + position_T - kept_so_far_KT)
    positions_KT = torch.empty_like(place_KT)
    positions_KT.scatter_(1, place_KT, position_T.expand_as(place_KT))
    return positions_KT[:, : budget.total], positions_KT[:, budget.total :]


def _rows(view: View, positions_KR: torch.Tensor) -> Rows:
    """Keys and values at `positions_KR`, as selections of rows (a gather takes elements)."""
    key_KRD, value_KRD = (
        _select(rows_KTD, positions_KR) for rows_KTD in (view.key_KTD, view.value_KTD)
    )
    return Rows(key_KRD, value_KRD, view.is_image_T[positions_KR])


def _select(rows_KTD: torch.Tensor, positions_KR: torch.Tensor) -> torch.Tensor:
    """`rows_KTD` at each head's positions, `[K, R, D]`.

    The rows are read where they are: a model makes q, k and v in one tensor `[T, (H + 2 K) D]`,
    where a head's rows are H + 2 K rows of D apart.
    """
    num_heads, num_tokens, head_size = rows_KTD.shape
    per_head, per_token, dense = rows_KTD.stride()
    if dense != 1 or per_head % head_size or per_token % head_size:
        rows_KTD = rows_KTD.contiguous()
        per_head, per_token, _ = rows_KTD.stride()
    per_head, per_token = per_head // head_size, per_token // head_size
    num_rows = (num_heads - 1) * per_head + (num_tokens - 1) * per_token + 1
    flat_RD = rows_KTD.as_strided((num_rows, head_size), (head_size, 1))
    first_K1 = torch.arange(num_heads, device=positions_KR.device)[:, None] * per_head
    row_R = (positions_KR * per_token + first_K1).flatten()
    return flat_RD.index_select(0, row_R).view(num_heads, -1, head_size)


def _everything(view: View) -> Compressed:
    positions_T = torch.arange(view.num_tokens, device=view.key_KTD.device)
    return Compressed(
        key=view.key_KTD,
        value=view.value_KTD,
        positions=positions_T.expand(view.num_heads, -1).contiguous(),
        num_evicted=0,
        num_merged=0,
        compressed=False,
        evicted=positions_T.new_empty(view.num_heads, 0),
    )
