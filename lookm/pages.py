"""Pages of keys and values: what is in one, how many bytes it takes, and how rows get into it.

Knows tensors. Knows nothing about who owns a page (`cache`) or how one is read (`attention`).
P pages, K KV heads, N rows of a page, D head size, R rows of anything.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape and type of one page: of one layer, all its KV heads, K and V."""

    num_kv_heads: int
    page_tokens: int
    head_dim: int
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Bytes of K and V in one page."""
        return 2 * self.num_kv_heads * self.page_tokens * self.head_dim * self.dtype.itemsize

    def empty(self, num_pages: int, device: torch.device | str = "cpu") -> "Pages":
        """So many pages of zeros."""
        shape = (num_pages, self.num_kv_heads, self.page_tokens, self.head_dim)
        k_PKND, v_PKND = (torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2))
        return Pages(k_PKND, v_PKND)


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """`k_PKND` and `v_PKND`, `[P, K, N, D]`, contiguous, of one type and device."""

    k_PKND: torch.Tensor
    v_PKND: torch.Tensor

    @property
    def layout(self) -> PageLayout:
        _, num_kv_heads, page_tokens, head_dim = self.k_PKND.shape
        return PageLayout(num_kv_heads, page_tokens, head_dim, self.k_PKND.dtype)

    @property
    def page_tokens(self) -> int:
        """Rows of one page."""
        return self.k_PKND.shape[2]

    @property
    def device(self) -> torch.device:
        return self.k_PKND.device

    def check(self, num_heads: int, head_dim: int) -> None:
        """What every kernel trusts: one shape, no gaps, heads that `num_heads` queries can read."""
        k_PKND, v_PKND = self.k_PKND, self.v_PKND
        assert k_PKND.is_contiguous(), "pages must be contiguous"
        assert v_PKND.is_contiguous(), "pages must be contiguous"
        assert k_PKND.shape == v_PKND.shape, (k_PKND.shape, v_PKND.shape)
        assert k_PKND.dtype == v_PKND.dtype, (k_PKND.dtype, v_PKND.dtype)
        assert k_PKND.shape[3] == head_dim, (k_PKND.shape, head_dim)
        assert num_heads % k_PKND.shape[1] == 0, (num_heads, k_PKND.shape)


#: `(pages, page_R, slot_R, k_RKD, v_RKD)`: stores R rows, each at its own (page, slot).
WriteRows = Callable[[Pages, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def write_rows(
    pages: Pages,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Store R rows, each at its own (page, slot); index tensors int64 `[R]`. In torch.

    Two rows of one call never share a place. Example with pages of 4 rows: rows 5 and 6 of a
    sequence whose pages are `[7, 2]` go to pages `[2, 2]`, slots `[1, 2]`.
    """
    pages.k_PKND[page_R, :, slot_R] = k_RKD.to(pages.k_PKND.dtype)
    pages.v_PKND[page_R, :, slot_R] = v_RKD.to(pages.v_PKND.dtype)


#: `(pages, page_M, k_KSD, v_KSD)`: copies the first S rows of these pages, in order, into k and v.
ReadRows = Callable[[Pages, torch.Tensor, torch.Tensor, torch.Tensor], None]


def read_rows(pages: Pages, page_M: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
    """Fill k and v, `[K, S, D]` with dense heads, from pages int64 `[M]`, S <= M * N. In torch."""
    for rows_KSD, part_PKND in ((k_KSD, pages.k_PKND), (v_KSD, pages.v_PKND)):
        read_KSD = part_PKND[page_M].transpose(0, 1).flatten(1, 2)
        rows_KSD.copy_(read_KSD[:, : rows_KSD.shape[1]])


def pages_for(rows: int, page_tokens: int) -> int:
    """Pages that hold `rows` rows."""
    return -(-rows // page_tokens)
