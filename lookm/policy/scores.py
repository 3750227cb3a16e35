"""How much each cached token matters: functions from a `View` to `score_KT`, higher is kept.

Every score is per KV head, in the precision of the statistics (float32 in the engine), and finite.
A score knows nothing about budgets, text or merging; only the order it gives within a head counts.

`A` is the causal softmax attention of the prompt, query heads of a group summed, so that
`sums_KT = sum_i A_ij` adds up to `T` times the group size in each head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lookm.policy.view import View, required

Score = Callable[[View], torch.Tensor]

SNAPKV_WINDOW = 32
SNAPKV_KERNEL = 5
ROCO_PROTECTED = 0.1
EXPECTED_SINKS = 4
KNORM_STEPS = 4096


def column_sum(view: View) -> torch.Tensor:
    """`sum_i A_ij`, the accumulated attention of H2O (2306.14048) and of LOOK-M's equation 4."""
    return required(view.sums_KT)


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
    sums_KT, squares_KT = required(view.sums_KT), required(view.squares_KT)
    num_tokens = view.num_tokens
    # Each row of A sums to 1, so all columns together give the number of rows: T times the group.
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
    window_KT = required(view.window_KT)
    num_before = max(view.num_tokens - SNAPKV_WINDOW, 0)
    if num_before == 0:
        return window_KT
    pooled_KT = F.avg_pool1d(
        window_KT[:, :num_before], SNAPKV_KERNEL, stride=1, padding=SNAPKV_KERNEL // 2
    )
    return torch.cat((pooled_KT, window_KT[:, num_before:]), dim=1)


def mixkv(view: View) -> torch.Tensor:
    """MixKV (2510.20707): importance, and where a head's keys are alike, diversity.

    With unit keys `u`, their mean `m` and the head's redundancy `r = (T |m|^2 - 1) / (T - 1)`, the
    mean cosine of two keys: `(1 - r) (s_ex + s_in) + r s_div`. `s_ex` is `snapkv`, `s_in` is
    `||v||` and `s_div` is `-u.m`; the last two scaled to 0 .. 1 and then to the mean of `s_ex`, all
    over the keys before the window, which `pins` keep. r is the prompt's own, as in the paper (its
    authors' code reads one measured beforehand).
    """
    extrinsic_KT = snapkv(view)
    num_tokens = view.num_tokens
    num_before = max(num_tokens - SNAPKV_WINDOW, 0)
    if num_before == 0:
        return extrinsic_KT
    unit_KTD = F.normalize(wide(view.key_KTD), dim=2)
    mean_K1D = unit_KTD.mean(dim=1, keepdim=True)
    redundancy_K1 = (num_tokens * mean_K1D.square().sum(dim=2) - 1) / (num_tokens - 1)
    before_KT = extrinsic_KT[:, :num_before]
    intrinsic_KT = _as_much_as(before_KT, _length(view.value_KTD)[:, :num_before])
    diversity_KT = _as_much_as(before_KT, -(unit_KTD[:, :num_before] * mean_K1D).sum(dim=2))
    mixed_KT = (1 - redundancy_K1) * (before_KT + intrinsic_KT) + redundancy_K1 * diversity_KT
    return torch.cat((mixed_KT, extrinsic_KT[:, num_before:]), dim=1)


def window_sum(view: View) -> torch.Tensor:
    """`sum_i A_ij` over the window's queries alone.

    With `Needs.after_images` VL-Cache's post-vision attention (2410.23317): the queries after the
    last image, which ask about what was shown.
    """
    return required(view.window_KT)


def tova(view: View) -> torch.Tensor:
    """TOVA (2401.06104): the attention of the last query, mean over all heads of the layer.

    All heads keep the same tokens. TOVA evicts one token a step; this is its rule applied once.
    """
    return required(view.window_KT).mean(dim=0).expand(view.num_heads, -1)


def shared_column_sum(view: View) -> torch.Tensor:
    """`sum_h sum_i A_ij`: PrefixKV's priority (2412.03409), one order for all heads of a layer."""
    return column_sum(view).sum(dim=0).expand(view.num_heads, -1)


def knorm(view: View) -> torch.Tensor:
    """`-||k||`: keys of small length draw much attention (2406.11430).

    As `-log2 ||k||` in steps of 1/4096: in the first layer equal tokens have keys of equal length,
    and rounding noise must not choose between them. They are kept from the first on.
    """
    length_KT = _length(view.key_KTD)
    length_KT = length_KT.clamp(min=torch.finfo(length_KT.dtype).tiny)
    return -(length_KT.log2() * KNORM_STEPS).round()


def keydiff(view: View) -> torch.Tensor:
    """KeyDiff (2504.15364): `-cos(k, mean of k / ||k||)`; unusual keys are kept. After RoPE."""
    unit_KTD = F.normalize(wide(view.key_KTD), dim=2)
    return -F.cosine_similarity(unit_KTD, unit_KTD.mean(dim=1, keepdim=True), dim=2)


def expected_attention(view: View) -> torch.Tensor:
    """Expected attention (2510.00636): what queries like the prompt's will give each key.

    For queries of mean mu and covariance S, `z = exp(mu.k s + k.S k s^2 / 2)`, s the logit scale;
    the score is `log(mean over the group of z / sum z) + log ||v||`. The first 4 queries are left
    out of mu and S (`pins` keep those keys). The paper rotates mu and S to the next 512 places;
    here they are of the prompt's queries as rotated, which stand before those places.
    """
    key_KTD, query_HTD = wide(view.key_KTD), wide(required(view.query_HTD))
    query_HTD = query_HTD[:, EXPECTED_SINKS if view.num_tokens > EXPECTED_SINKS else 0 :]
    mean_H1D = query_HTD.mean(dim=1, keepdim=True)
    from_mean_HTD = query_HTD - mean_H1D
    covariance_HDD = from_mean_HTD.transpose(1, 2) @ from_mean_HTD / query_HTD.shape[1]
    group = query_HTD.shape[0] // view.num_heads
    key_HTD = key_KTD.repeat_interleave(group, dim=0)
    first_HT = (key_HTD * mean_H1D).sum(dim=2) * view.scale
    second_HT = ((key_HTD @ covariance_HDD) * key_HTD).sum(dim=2) * (view.scale**2 / 2)
    share_HT = (first_HT + second_HT).log_softmax(dim=1)
    share_KT = share_HT.view(view.num_heads, group, -1).logsumexp(dim=1)
    length_KT = _length(view.value_KTD)
    return share_KT + length_KT.clamp(min=torch.finfo(length_KT.dtype).tiny).log()


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


def best(tier_T: torch.Tensor, score_KT: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` of `lexicographic`, `[K, count]`, in no order.

    For float32 scores one selection instead of two sorts: tier, score and position side by side in
    an integer that no two tokens share, of which the largest are taken.

        bit 62 .. 56     55 .. 24                     23 .. 0
        127 - tier   |   the score's bits, in order   |   2^24 - 1 - position
    """
    num_tokens = score_KT.shape[1]
    if score_KT.dtype != torch.float32 or num_tokens > 1 << 24:
        return lexicographic(tier_T, score_KT)[:, :count]
    bits_KT = (score_KT + 0.0).view(torch.int32).long()  # 0.0 and -0.0 are equal scores
    # The bits of a float, as an integer, are in the order of the floats, but for the sign.
    rising_KT = bits_KT ^ ((bits_KT >> 31) & 0x7FFFFFFF)  # negative floats count backwards
    earlier_T = (1 << 24) - 1 - torch.arange(num_tokens, device=score_KT.device)
    key_KT = ((rising_KT + (1 << 31)) << 24) + (((127 - tier_T.long()) << 56) + earlier_T)
    return key_KT.topk(count, dim=1, sorted=False).indices


def _num_seeing(view: View) -> torch.Tensor:
    """`T - j`: how many queries see key j."""
    return torch.arange(view.num_tokens, 0, -1, device=view.key_KTD.device)


def _as_much_as(model_KT: torch.Tensor, value_KT: torch.Tensor) -> torch.Tensor:
    """`value_KT` from its least to its most as 0 to 1, then with the mean of `model_KT`."""
    low_K1, high_K1 = value_KT.amin(dim=1, keepdim=True), value_KT.amax(dim=1, keepdim=True)
    unit_KT = (value_KT - low_K1) / (high_K1 - low_K1 + 1e-8)
    return unit_KT * (
        model_KT.mean(dim=1, keepdim=True) / (unit_KT.mean(dim=1, keepdim=True) + 1e-8)
    )


def _length(rows_KTD: torch.Tensor) -> torch.Tensor:
    length_KT: torch.Tensor = torch.linalg.vector_norm(wide(rows_KTD), dim=2)
    return length_KT


def wide(rows: torch.Tensor) -> torch.Tensor:
    """float32, or float64 for float64 inputs."""
    return rows if rows.dtype == torch.float64 else rows.float()
