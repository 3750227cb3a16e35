"""A pool of pages: one page space for every layer of every sequence.

Knows pages and who may take one. Knows nothing about policies, positions or attention.
"""

import torch

from lookm.errors import ConfigError
from lookm.pages import PageLayout, ReadRows, WriteRows, copy_pages, read_rows, write_rows


class PagePool:
    """`num_pages` pages of `page_tokens` rows; a row is one token's K and V in one layer.

    A page belongs to at most one owner at a time; `check()` proves it against the owners' own
    lists. `pages` has one page more: the last, `scratch_page`, is nobody's: rows that stand for no
    sequence write there. `write_rows` and `read_rows` may be faster ones than those of `pages`.
    """

    def __init__(
        self,
        num_pages: int,
        layout: PageLayout,
        *,
        device: torch.device | str = "cpu",
        write_rows: WriteRows = write_rows,
        read_rows: ReadRows = read_rows,
    ) -> None:
        if num_pages < 1:
            raise ConfigError("the KV cache memory does not hold a single page; give it more")
        self.num_pages = num_pages
        self.layout = layout
        self.page_tokens = layout.page_tokens
        self.page_bytes = layout.page_bytes
        self.scratch_page = num_pages
        self.pages = layout.empty(num_pages + 1, device)
        self._write_rows = write_rows
        self._read_rows = read_rows
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        return self.pages.device

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
        """Store R rows, each at its own (page, slot). See `lookm.pages.write_rows`."""
        self._write_rows(self.pages, page_R, slot_R, k_RKD, v_RKD)

    def read(self, page_M: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
        """Copy the first S rows of these pages. See `lookm.pages.read_rows`."""
        self._read_rows(self.pages, page_M, k_KSD, v_KSD)

    def copy(self, source_M: torch.Tensor, target_M: torch.Tensor) -> None:
        """Copy whole pages, bit for bit. See `lookm.pages.copy_pages`."""
        copy_pages(self.pages, source_M, target_M)

    def check(self, owned: list[list[int]]) -> None:
        """Assert that every page is either free or owned exactly once."""
        pages = [page for group in owned for page in group]
        assert len(set(pages)) == len(pages), "a page has two owners"
        assert not set(pages) & set(self._free), "an owned page is also free"
        assert len(pages) + len(self._free) == self.num_pages, "a page leaked"
