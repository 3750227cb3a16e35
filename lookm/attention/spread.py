"""How widely a prompt's attention is spread: two numbers per KV head, for budgets over depth.

Beside the seam of `api`, not behind it: one plain torch pass over the queries and keys, the same
whichever implementation computes the output, so that a fast path need not know these numbers and
none of them is ever approximated. Few policies ask (`Needs.density`, `Needs.entropy`).
"""

from dataclasses import dataclass

import torch

from lookm.types import Needs

CHUNK_ROWS = 64
DENSE = 0.01  # VL-Cache's p


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Per KV head (mean over the query heads of its group), those that `Needs` asked for.

    `density_K` (VL-Cache, 2410.23317): over the last `Needs.window` query rows, the share of the
    weights a row can see that are at least 1 % of the row's largest; in (0, 1].

    `entropy_K` (MEDA, 2502.17599): `E_TV + E_VT`, in nats, at least 0. `E_TV` is the mean over text
    rows that see an image of `-sum_j A_ij log A_ij` over image keys j; `E_VT` is the same with text
    and image exchanged. 0 where a prompt has no such rows.
    """

    density_K: torch.Tensor | None = None
    entropy_K: torch.Tensor | None = None


def measure(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    *,
    scale: float,
    is_image_T: torch.Tensor,
    needs: Needs,
    mask_TT: torch.Tensor | None = None,
) -> Spread:
    """The numbers that `needs` asks for, of causal attention or where `mask_TT` allows.

    Softmax and sums are float32, or float64 for float64 inputs. 64 query rows at a time.
    """
    if not (needs.density or needs.entropy):
        return Spread()
    num_heads, num_tokens, head_size = k_KTD.shape
    dtype = torch.float64 if q_HTD.dtype == torch.float64 else torch.float32
    q_KGTD = q_HTD.reshape(num_heads, -1, num_tokens, head_size).to(dtype)
    k_K1DT = k_KTD.to(dtype).transpose(1, 2)[:, None]
    window = min(needs.window, num_tokens)
    tally = _Tally(num_heads, q_KGTD.shape[1], is_image_T, dtype)
    for start in range(0 if needs.entropy else num_tokens - window, num_tokens, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, num_tokens)
        sees_CT = _sees(start, end, num_tokens, mask_TT, q_HTD.device)
        logits_KGCT = (q_KGTD[:, :, start:end] @ k_K1DT).mul_(scale)
        weights_KGCT = logits_KGCT.masked_fill_(~sees_CT, -torch.inf).softmax(dim=-1)
        if needs.density:
            first = max(0, num_tokens - window - start)
            tally.add_dense(weights_KGCT[:, :, first:], sees_CT[first:])
        if needs.entropy:
            tally.add_entropy(weights_KGCT, sees_CT, is_image_T[start:end])
    return Spread(
        density_K=tally.density() if needs.density else None,
        entropy_K=tally.entropy() if needs.entropy else None,
    )


class _Tally:
    """Totals over the chunks."""

    def __init__(
        self, num_heads: int, group: int, is_image_T: torch.Tensor, dtype: torch.dtype
    ) -> None:
        device = is_image_T.device
        self._group = group
        self._is_image_T = is_image_T
        self._dense_K, self._seen = (
            torch.zeros(num_heads, dtype=dtype, device=device),
            torch.zeros((), dtype=dtype, device=device),
        )
        self._entropy_2K = torch.zeros(2, num_heads, dtype=dtype, device=device)
        self._rows_2 = torch.zeros(2, dtype=dtype, device=device)

    def add_dense(self, weights_KGCT: torch.Tensor, sees_CT: torch.Tensor) -> None:
        largest_KGC1 = weights_KGCT.amax(dim=-1, keepdim=True)
        dense_KGCT = (weights_KGCT >= DENSE * largest_KGC1) & sees_CT
        self._dense_K += dense_KGCT.sum(dim=(1, 2, 3))
        self._seen += sees_CT.sum() * self._group

    def add_entropy(
        self, weights_KGCT: torch.Tensor, sees_CT: torch.Tensor, is_image_C: torch.Tensor
    ) -> None:
        """Rows of one modality against keys of the other: text rows first."""
        keys_T2 = torch.stack((self._is_image_T, ~self._is_image_T), dim=1).to(weights_KGCT.dtype)
        entropy_KGC2 = torch.special.entr(weights_KGCT) @ keys_T2
        sees_C2 = (sees_CT.to(keys_T2.dtype) @ keys_T2) > 0
        rows_C2 = torch.stack((~is_image_C, is_image_C), dim=1) & sees_C2
        self._entropy_2K += (entropy_KGC2 * rows_C2).sum(dim=(1, 2)).T
        self._rows_2 += rows_C2.sum(dim=0) * self._group

    def density(self) -> torch.Tensor:
        return self._dense_K / self._seen

    def entropy(self) -> torch.Tensor:
        return (self._entropy_2K / self._rows_2.clamp(min=1)[:, None]).sum(dim=0)


def _sees(
    start: int, end: int, num_tokens: int, mask_TT: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Which keys rows `start..end` see, bool `[C, T]`."""
    if mask_TT is not None:
        return mask_TT[start:end]
    keys_T = torch.arange(num_tokens, device=device)
    return keys_T <= torch.arange(start, end, device=device)[:, None]
