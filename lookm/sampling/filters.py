"""Top-k, top-p and min-p for many rows at once: each is a value that logits must reach to stay.

Values rather than ranks decide, so equal logits stay or go together, whatever order a sort gives
them, and the most likely token always stays.
"""

import numpy as np
import torch


def keep_top(
    logits_BV: torch.Tensor, top_k: list[int], top_p: list[float], min_p: list[float]
) -> torch.Tensor:
    """Set to -inf what is outside each row's top k (0 = off), nucleus (1 = off) or min-p (0 = off).

    The nucleus is the smallest set of most likely tokens whose mass, after top-k, reaches `top_p`.
    `min_p` asks for a share of the most likely token's probability.
    """
    sorts = any(top_k) or any(p < 1 for p in top_p)
    if not sorts and not any(min_p):
        return logits_BV
    least_B = torch.full_like(logits_BV[:, 0], -torch.inf)
    if sorts:
        sorted_BV = _descending(logits_BV)
        least_B = _kth_largest(sorted_BV, top_k)
        sorted_BV = sorted_BV.masked_fill(sorted_BV < least_B[:, None], -torch.inf)
        least_B = torch.maximum(least_B, _nucleus_edge(sorted_BV, top_p))
    if any(min_p):
        share_B = torch.tensor(min_p, dtype=logits_BV.dtype, device=logits_BV.device)
        least_B = torch.maximum(least_B, logits_BV.amax(-1) + share_B.log())
    return logits_BV.masked_fill(logits_BV < least_B[:, None], -torch.inf)


def _descending(logits_BV: torch.Tensor) -> torch.Tensor:
    """Each row sorted, largest first. Values alone, on a CPU, are sorted much faster by numpy."""
    if logits_BV.is_cpu:
        return torch.from_numpy(np.sort(logits_BV.neg().numpy(), axis=-1)).neg_()
    return logits_BV.sort(-1, descending=True).values


def _kth_largest(sorted_BV: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """The k-th of each sorted row; -inf where k is 0 or beyond the row."""
    k_B = torch.tensor([min(k, sorted_BV.shape[-1]) for k in top_k], device=sorted_BV.device)
    return _at(sorted_BV, (k_B - 1).clamp_min(0)).masked_fill(k_B == 0, -torch.inf)


def _nucleus_edge(sorted_BV: torch.Tensor, top_p: list[float]) -> torch.Tensor:
    """The smallest logit of each sorted row's nucleus; -inf where `top_p` is 1.

    A token is inside while the mass before it is below p. With p = 0.9 and p_j 0.5, 0.3, 0.15, 0.05
    the masses before are 0, 0.5, 0.8 and 0.95: three are inside.
    """
    p_B = torch.tensor(top_p, dtype=sorted_BV.dtype, device=sorted_BV.device)
    mass_BV = sorted_BV.softmax(-1).cumsum(-1)
    num_inside_B = 1 + (mass_BV[:, :-1] < p_B[:, None]).sum(-1)
    return _at(sorted_BV, num_inside_B - 1).masked_fill(p_B >= 1, -torch.inf)


def _at(sorted_BV: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    return sorted_BV.gather(-1, index_B[:, None])[:, 0]
