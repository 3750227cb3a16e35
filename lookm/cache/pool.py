"""Pages of keys and values: one page space for every layer of every sequence.

Knows bytes, pages and who may take one. Knows nothing about policies, positions or attention.
"""

from collections.abc import Callable

import torch

from lookm.errors import ConfigError

WriteRows = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None
]


class PagePool:
    """`num_pages` pages of `page_tokens` rows; a row is one token's K and V in one layer.

    `k_PKND` and `v_PKND` are `[pages + 1, kv_heads, page_tokens, head_dim]`. A page belongs to at
    most one owner at a time; `check()` proves it against the owners' own lists. The last page,
    `scratch_page`, is nobody's: rows that stand for no sequence write there. `write` is a faster
    twin of `write_rows`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        write: WriteRows | None = None,
    ) -> None:
        num_pages, num_kv_heads, page_tokens, head_dim = shape
        if num_pages < 1:
            raise ConfigError("the KV cache memory does not hold a single page; give it more")
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.scratch_page = num_pages
        self.k_PKND, self.v_PKND = (
            torch.zeros((num_pages + 1, *shape[1:]), dtype=dtype, device=device) for _ in range(2)
        )
        self._write = write or write_rows
        self.page_bytes = page_bytes(num_kv_heads, page_tokens, head_dim, dtype)
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        return self.k_PKND.device

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out `count` pages. The caller has checked `num_free`; running dry is our bug."""
        assert 0 <= count <= len(self._free), f"asked {count} pages of {len(self._free)} free"
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give(self, pages: list[int]) -> None:
        """Take pages back."""
        self._free.extend(reversed(pages))
        assert len(self._free) <= self.num_pages, "a page was given back twice"

    def write(
        self,
        page_R: torch.Tensor,
        slot_R: torch.Tensor,
        k_RKD: torch.Tensor,
        v_RKD: torch.Tensor,
    ) -> None:
        """Store R rows, each at its own (page, slot). Index tensors are int64 `[R]`.

        Two rows of one call never share a place. Example with `page_tokens` 4: rows 5 and 6 of a
        sequence whose pages are `[7, 2]` go to pages `[2, 2]`, slots `[1, 2]`.
        """
        self._write(self.k_PKND, self.v_PKND, page_R, slot_R, k_RKD, v_RKD)

    def check(self, owned: list[list[int]]) -> None:
        """Assert that every page is either free or owned exactly once."""
        pages = [page for group in owned for page in group]
        assert len(set(pages)) == len(pages), "a page has two owners"
        assert not set(pages) & set(self._free), "an owned page is also free"
        assert len(pages) + len(self._free) == self.num_pages, "a page leaked"


def write_rows(
    k_PKND: torch.Tensor,
    v_PKND: torch.Tensor,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """`PagePool.write` in torch."""
    k_PKND[page_R, :, slot_R] = k_RKD.to(k_PKND.dtype)
    v_PKND[page_R, :, slot_R] = v_RKD.to(v_PKND.dtype)


def page_bytes(num_kv_heads: int, page_tokens: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of K and V in one page."""
    return 2 * num_kv_heads * page_tokens * head_dim * dtype.itemsize


def pages_for(rows: int, page_tokens: int) -> int:
    """Pages that hold `rows` rows."""
    return -(-rows // page_tokens)
