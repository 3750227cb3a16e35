"""Top-k, top-p and min-p for many rows at once: each is a value that logits must reach to stay.

Values rather than ranks decide, so equal logits stay or go together, whatever order a sort gives
them. The most likely token always stays.
"""

import torch

NUCLEUS_TOKENS = 1024  # looked at first: sorting a whole vocabulary costs 20 times as much


def keep_top(
    logits_BV: torch.Tensor, top_k: list[int], top_p: list[float], min_p: list[float]
) -> torch.Tensor:
    """Set to -inf what is outside each row's top k (0 = off), nucleus (1 = off) or min-p (0 = off).

    The nucleus is the smallest set of most likely tokens whose mass, after top-k, reaches `top_p`.
    `min_p` asks for a share of the most likely token's probability.
    """
    num_vocabulary = logits_BV.shape[-1]
    ks = [k if 0 < k < num_vocabulary else 0 for k in top_k]
    if any(ks):
        logits_BV = _drop_below(logits_BV, _kth_largest(logits_BV, ks))
    if any(p < 1 for p in top_p):
        logits_BV = _drop_below(logits_BV, _nucleus_edge(logits_BV, top_p))
    if any(min_p):
        share_B = torch.tensor(min_p, dtype=logits_BV.dtype, device=logits_BV.device).log()
        logits_BV = _drop_below(logits_BV, logits_BV.amax(-1) + share_B)
    return logits_BV


def _drop_below(logits_BV: torch.Tensor, least_B: torch.Tensor) -> torch.Tensor:
    return logits_BV.masked_fill(logits_BV < least_B[:, None], -torch.inf)


def _kth_largest(logits_BV: torch.Tensor, ks: list[int]) -> torch.Tensor:
    """The k-th largest of each row; -inf where k is 0."""
    largest = logits_BV.topk(max(ks)).values
    k_B = torch.tensor(ks, device=logits_BV.device)
    least_B = largest.gather(-1, (k_B - 1).clamp_min(0)[:, None])[:, 0]
    return least_B.masked_fill(k_B == 0, -torch.inf)


def _nucleus_edge(logits_BV: torch.Tensor, top_p: list[float]) -> torch.Tensor:
    """The smallest logit of each row's nucleus; -inf where `top_p` is 1."""
    p_B = torch.tensor(top_p, dtype=logits_BV.dtype, device=logits_BV.device)
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    num_vocabulary = logits_BV.shape[-1]
    for width in (min(NUCLEUS_TOKENS, num_vocabulary), num_vocabulary):
        largest = logits_BV.topk(width).values
        mass = (largest - total_B1).exp().cumsum(-1)
        if bool(((mass[:, -1] >= p_B) | (p_B >= 1)).all()):
            break
    # Mass before each: 0 for the first. With p = 0.9 and masses 0.5 0.8 0.95 1: three are inside.
    num_inside_B = 1 + (mass[:, :-1] < p_B[:, None]).sum(-1)
    edge_B = largest.gather(-1, (num_inside_B - 1)[:, None])[:, 0]
    return edge_B.masked_fill(p_B >= 1, -torch.inf)
