"""How much each cached token matters: functions from a `View` to `score_KT`, higher is kept.

Every score is per KV head, in the precision of the statistics (float32 in the engine), and finite.
A score knows nothing about budgets, text or merging; only the order it gives within a head counts.

`A` is the causal softmax attention of the prompt, query heads of a group summed, so that
`sums_KT = sum_i A_ij` adds up to `T` times the group size in each head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lookm.policy.view import View

Score = Callable[[View], torch.Tensor]

SNAPKV_WINDOW = 32
SNAPKV_KERNEL = 5
ROCO_PROTECTED = 0.1


def column_sum(view: View) -> torch.Tensor:
    """`sum_i A_ij`, the accumulated attention of H2O (2306.14048) and of LOOK-M's equation 4."""
    return _required(view.sums_KT)


def column_mean(view: View) -> torch.Tensor:
    """`sum_i A_ij / (T - j)`: the mean over the queries that can see key j (mean-H2O).

    Takes away the head start that early keys have in `column_sum` by being seen more often.
    """
    return column_sum(view) / _num_seeing(view)


def roco(view: View) -> torch.Tensor:
    """RoCo (2402.06262): evict the lowest mean among the keys whose attention varies little.

    Over the `n = G (T - j)` attention weights that key j receives in a group of G query heads:
    `mean = sum A / n`, `std = sqrt(sum A^2 / n - mean^2)`. The tenth of the keys with the largest
    std (`ceil(T/10)`, EasyKV's default) is out of eviction's scope: it ranks above the rest, and
    each of the two is ordered by mean. The score is the rank in that order, 0 for the first to be
    evicted. EasyKV decides token by token while decoding; this is its rule applied once.
    """
    sums_KT, squares_KT = _required(view.sums_KT), _required(view.squares_KT)
    num_tokens = view.num_tokens
    group = (sums_KT.sum(dim=1, keepdim=True) / num_tokens).round().clamp(min=1)
    num_weights_KT = _num_seeing(view) * group
    mean_KT = sums_KT / num_weights_KT
    variance_KT = squares_KT / num_weights_KT - mean_KT.square()
    num_protected = -(-num_tokens // round(1 / ROCO_PROTECTED))
    steady_KT = torch.ones_like(mean_KT, dtype=torch.int8)
    steady_KT.scatter_(1, variance_KT.topk(num_protected, dim=1).indices, 0)
    order_KT = lexicographic(steady_KT, mean_KT)
    ranks_T = torch.arange(num_tokens - 1, -1, -1, device=mean_KT.device, dtype=mean_KT.dtype)
    return torch.empty_like(mean_KT).scatter_(1, order_KT, ranks_T.expand_as(mean_KT))


def snapkv(view: View) -> torch.Tensor:
    """SnapKV (2404.14469): attention of the last 32 queries, average-pooled over 5 keys.

    The keys before the window are pooled among themselves (zeros beyond the ends, as the authors
    pool). Keys inside the window keep their plain sum; `pins` ranks them first.
    """
    window_KT = _required(view.window_KT)
    num_before = max(view.num_tokens - SNAPKV_WINDOW, 0)
    if num_before == 0:
        return window_KT
    pooled_KT = F.avg_pool1d(
        window_KT[:, :num_before], SNAPKV_KERNEL, stride=1, padding=SNAPKV_KERNEL // 2
    )
    return torch.cat((pooled_KT, window_KT[:, num_before:]), dim=1)


def position(view: View) -> torch.Tensor:
    """Later is better (StreamingLLM, 2309.17453, whose sinks are `pins`' business)."""
    position_T = torch.arange(view.num_tokens, device=view.key_KTD.device, dtype=torch.float32)
    return position_T.expand(view.num_heads, -1)


def random(view: View) -> torch.Tensor:
    """Uniform noise, the control. The seed is made of T and the layer; heads are independent.

    The same prompt length and layer give the same draw on every device and in every process.
    """
    generator = torch.Generator().manual_seed(1_000_003 * view.layer + view.num_tokens)
    score_KT = torch.rand(view.num_heads, view.num_tokens, generator=generator)
    return score_KT.to(view.key_KTD.device)


def lexicographic(tier: torch.Tensor, score_KT: torch.Tensor) -> torch.Tensor:
    """Positions `[K, T]` by tier (low first), then score (high first), then position (low first).

    `tier` is `[T]` or `[K, T]` of integers. Two stable sorts: nothing is ever added to a score,
    which would cost it its resolution (the released LOOK-M adds -65516 and, in half precision,
    picks image tokens at random).
    """
    by_score_KT = score_KT.argsort(dim=1, descending=True, stable=True)
    tier_KT = tier.expand_as(score_KT).gather(1, by_score_KT)
    return by_score_KT.gather(1, tier_KT.argsort(dim=1, stable=True))


def _num_seeing(view: View) -> torch.Tensor:
    """`T - j`: how many queries see key j."""
    return torch.arange(view.num_tokens, 0, -1, device=view.key_KTD.device)


def _required(statistic_KT: torch.Tensor | None) -> torch.Tensor:
    assert statistic_KT is not None, "the recipe's Needs must ask for what its score reads"
    return statistic_KT
