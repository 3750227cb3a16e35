"""Pages of keys and values: what is in one, how many bytes it takes, and how rows get into it.

Knows tensors. Knows nothing about who owns a page (`cache`) or how one is read (`attention`).
P pages, K KV heads, N rows of a page, D head size, R rows of anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lookm.config import EnginePlan, KvCacheDType
from lookm.kv_format import LARGEST, KvFormat, pack, unpack


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape and type of one page: of one layer, all its KV heads, K and V.

    `dtype` is the type of the rows that are written and read, `kv_cache_dtype` how they are stored.
    """

    num_kv_heads: int
    page_tokens: int
    head_dim: int
    dtype: torch.dtype
    kv_cache_dtype: KvCacheDType = "auto"

    @classmethod
    def of(cls, plan: EnginePlan, dtype: torch.dtype) -> "PageLayout":
        """That of an engine's pages, with rows of the type of its model."""
        shape = (plan.num_kv_heads, plan.page_tokens, plan.head_dim)
        return cls(*shape, dtype, plan.kv_cache_dtype)

    @property
    def format(self) -> KvFormat:
        """How its numbers are stored."""
        return KvFormat.of(self.kv_cache_dtype, self.dtype)

    @property
    def page_bytes(self) -> int:
        """Bytes of K and V in one page, scales included."""
        return 2 * self.num_kv_heads * self.page_tokens * self.format.row_bytes(self.head_dim)

    @property
    def raw(self) -> "PageLayout":
        """The same page of rows as the model has them."""
        return replace(self, kv_cache_dtype="auto")

    def empty(self, num_pages: int, device: torch.device | str = "cpu") -> "Pages":
        """So many pages of zeros."""
        shape, stored = (num_pages, self.num_kv_heads, self.page_tokens), self.format.stored
        k_PKND, v_PKND = (
            torch.zeros((*shape, self.head_dim), dtype=stored, device=device) for _ in range(2)
        )
        if not self.format.scaled:
            return Pages(k_PKND, v_PKND)
        return Pages(k_PKND, v_PKND, *(torch.zeros(shape, device=device) for _ in range(2)))


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """`k_PKND` and `v_PKND`, `[P, K, N, D]`, contiguous, of one type and device.

    Where they are bytes, `k_scale_PKN` and `v_scale_PKN`, float32, say of what (`kv_format`).
    """

    k_PKND: torch.Tensor
    v_PKND: torch.Tensor
    k_scale_PKN: torch.Tensor | None = None
    v_scale_PKN: torch.Tensor | None = None

    @property
    def page_tokens(self) -> int:
        """Rows of one page."""
        return self.k_PKND.shape[2]

    @property
    def device(self) -> torch.device:
        return self.k_PKND.device

    @property
    def scaled(self) -> bool:
        """Whether its numbers are bytes, with scales."""
        return self.k_scale_PKN is not None

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All tensors, each with a page for each entry of its first dimension."""
        every = (self.k_PKND, self.v_PKND, self.k_scale_PKN, self.v_scale_PKN)
        return tuple(part for part in every if part is not None)

    def taken(self, at: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V at `at`, an index into `[P, K, N]`, as numbers of `dtype`."""
        if self.k_scale_PKN is None or self.v_scale_PKN is None:
            return self.k_PKND[at].to(dtype), self.v_PKND[at].to(dtype)
        k_scale, v_scale = self.k_scale_PKN[at], self.v_scale_PKN[at]
        return unpack(self.k_PKND[at], k_scale, dtype), unpack(self.v_PKND[at], v_scale, dtype)

    def check(self, num_heads: int, head_dim: int) -> None:
        """What every kernel trusts: one shape, no gaps, heads that `num_heads` queries can read."""
        k_PKND, v_PKND = self.k_PKND, self.v_PKND
        for part in self.parts:
            assert part.is_contiguous(), "pages must be contiguous"
            assert part.device == k_PKND.device, "one device for all"
        assert k_PKND.shape == v_PKND.shape, (k_PKND.shape, v_PKND.shape)
        assert k_PKND.dtype == v_PKND.dtype, (k_PKND.dtype, v_PKND.dtype)
        assert k_PKND.shape[3] == head_dim, (k_PKND.shape, head_dim)
        assert num_heads % k_PKND.shape[1] == 0, (num_heads, k_PKND.shape)
        num_parts = 4 if k_PKND.dtype in LARGEST else 2
        assert len(self.parts) == num_parts, "bytes have scales, others none"
        for scale_PKN in self.parts[2:]:
            assert scale_PKN.shape == k_PKND.shape[:3], (scale_PKN.shape, k_PKND.shape)
            assert scale_PKN.dtype == torch.float32, scale_PKN.dtype


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
    where, scales = (page_R, slice(None), slot_R), (pages.k_scale_PKN, pages.v_scale_PKN)
    for rows_RKD, part_PKND, scale_PKN in zip(
        (k_RKD, v_RKD), (pages.k_PKND, pages.v_PKND), scales, strict=True
    ):
        if scale_PKN is None:
            part_PKND[where] = rows_RKD.to(part_PKND.dtype)
        else:
            part_PKND[where], scale_PKN[where] = pack(rows_RKD, part_PKND.dtype)


#: `(pages, page_M, k_KSD, v_KSD)`: copies the first S rows of these pages, in order, into k and v.
ReadRows = Callable[[Pages, torch.Tensor, torch.Tensor, torch.Tensor], None]


def read_rows(pages: Pages, page_M: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
    """Fill k and v, `[K, S, D]` with dense heads, from pages int64 `[M]`, S <= M * N. In torch."""
    for rows_KSD, part_MKND in zip((k_KSD, v_KSD), pages.taken(page_M, k_KSD.dtype), strict=True):
        rows_KSD.copy_(part_MKND.transpose(0, 1).flatten(1, 2)[:, : rows_KSD.shape[1]])


def copy_pages(pages: Pages, source_M: torch.Tensor, target_M: torch.Tensor) -> None:
    """Copy whole pages, bit for bit; int64 `[M]` both, no page in both."""
    for part in pages.parts:
        part[target_M] = part[source_M]


def pages_for(rows: int, page_tokens: int) -> int:
    """Pages that hold `rows` rows."""
    return -(-rows // page_tokens)
