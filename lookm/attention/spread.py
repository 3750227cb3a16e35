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
    """Counts over query rows, those that `Needs` asked for; they add up over the parts of a prompt.

    Per KV head (mean over the query heads of its group) they give `density_K` and `entropy_K`.
    """

    dense_K: torch.Tensor | None = None
    visible: torch.Tensor | None = None  # weights that the rows see, of all query heads of a group
    entropy_2K: torch.Tensor | None = None  # text rows over image keys, then image rows over text
    rows_2: torch.Tensor | None = None  # how many rows of each there are, all query heads

    @property
    def density_K(self) -> torch.Tensor | None:  # noqa: N802 shapes live in names
        """VL-Cache (2410.23317): over the last `Needs.window` query rows, the share of the weights
        a row can see that are at least 1 % of the row's largest; in (0, 1]."""
        if self.dense_K is None or self.visible is None:
            return None
        return self.dense_K / self.visible

    @property
    def entropy_K(self) -> torch.Tensor | None:  # noqa: N802
        """MEDA (2502.17599): `E_TV + E_VT`, in nats, at least 0. `E_TV` is the mean over text rows
        that see an image of `-sum_j A_ij log A_ij` over image keys j; `E_VT` is the same with text
        and image exchanged. 0 where a prompt has no such rows."""
        if self.entropy_2K is None or self.rows_2 is None:
            return None
        return (self.entropy_2K / self.rows_2.clamp(min=1)[:, None]).sum(dim=0)

    def plus(self, later: "Spread") -> "Spread":
        """The counts over these rows and over `later` ones."""
        return Spread(
            dense_K=_sum(self.dense_K, later.dense_K),
            visible=_sum(self.visible, later.visible),
            entropy_2K=_sum(self.entropy_2K, later.entropy_2K),
            rows_2=_sum(self.rows_2, later.rows_2),
        )


def counted(dense_K: torch.Tensor, num_rows: int, needs: Needs, group: int) -> Spread:
    """What was counted on the way of the window's rows, the last of `num_rows` causal ones."""
    visible = sum(range(num_rows - needs.window + 1, num_rows + 1)) * group
    return Spread(dense_K=dense_K, visible=torch.tensor(visible, device=dense_K.device))


def measure(
    q_HTD: torch.Tensor,
    k_KSD: torch.Tensor,
    *,
    scale: float,
    is_image_T: torch.Tensor,
    needs: Needs,
    mask_TT: torch.Tensor | None = None,
) -> Spread:
    """What `needs` asks for of T rows, the last of S, causal or where `mask_TT` `[T, S]` allows.

    `is_image_T` is of all S rows. Softmax and sums are float32, or float64 for float64 inputs; 64
    query rows at a time.
    """
    if not (needs.density or needs.entropy):
        return Spread()
    num_heads, num_rows, head_size = k_KSD.shape
    num_queries = q_HTD.shape[1]
    dtype = torch.float64 if q_HTD.dtype == torch.float64 else torch.float32
    q_KGTD = q_HTD.reshape(num_heads, -1, num_queries, head_size).to(dtype)
    k_K1DS = k_KSD.to(dtype).transpose(1, 2)[:, None]
    window = min(needs.window, num_queries)
    tally = _Tally(num_heads, q_KGTD.shape[1], is_image_T, dtype)
    for start in range(0 if needs.entropy else num_queries - window, num_queries, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, num_queries)
        sees_CS = _sees(start, end, num_rows - num_queries, num_rows, mask_TT, q_HTD.device)
        logits_KGCS = (q_KGTD[:, :, start:end] @ k_K1DS).mul_(scale)
        weights_KGCS = logits_KGCS.masked_fill_(~sees_CS, -torch.inf).softmax(dim=-1)
        if needs.density:
            first = max(0, num_queries - window - start)
            tally.add_dense(weights_KGCS[:, :, first:], sees_CS[first:])
        if needs.entropy:
            own = slice(num_rows - num_queries + start, num_rows - num_queries + end)
            tally.add_entropy(weights_KGCS, sees_CS, is_image_T[own])
    return tally.found(needs)


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

    def found(self, needs: Needs) -> Spread:
        """What was asked for."""
        return Spread(
            dense_K=self._dense_K if needs.density else None,
            visible=self._seen if needs.density else None,
            entropy_2K=self._entropy_2K if needs.entropy else None,
            rows_2=self._rows_2 if needs.entropy else None,
        )


def _sees(
    start: int,
    end: int,
    num_before: int,
    num_rows: int,
    mask_TT: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Which keys queries `start..end` see, bool `[C, S]`."""
    if mask_TT is not None:
        return mask_TT[start:end]
    keys_S = torch.arange(num_rows, device=device)
    return keys_S <= torch.arange(num_before + start, num_before + end, device=device)[:, None]


def _sum(first: torch.Tensor | None, later: torch.Tensor | None) -> torch.Tensor | None:
    return later if first is None else first if later is None else first + later
