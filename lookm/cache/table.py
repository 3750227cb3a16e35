"""Where one sequence's rows lie: a page list and a row count per layer.

    layer 0   pages [ 3 | 9 | 4 ]   kept 37   ->  row 36 is page 4, slot 4 (16 rows a page)
    layer 1   pages [ 5 | 8 ]       kept 21       layers may keep different counts

Row count is not position: after compression row 36 may hold the token at position 900.
"""

import numpy as np
import numpy.typing as npt
import torch

from lookm.cache.pool import PagePool
from lookm.pages import pages_for

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class SequenceCache:
    """The rows one sequence holds in a `PagePool`.

    Grows by `reserve`, shrinks by `trim`, empties by `release`.
    """

    def __init__(self, pool: PagePool, num_layers: int) -> None:
        self._pool = pool
        self.pages: list[list[int]] = [[] for _ in range(num_layers)]
        self.kept_L: Int64 = np.zeros(num_layers, dtype=np.int64)
        self._held_L: Int64 = np.zeros(num_layers, dtype=np.int64)  # lengths of `pages`
        self.generation = 0  # how often pages were given back: a copy of the table is then void
        self.table_LM: Int32 = np.zeros((num_layers, 8), dtype=np.int32)  # `pages`, for batches

    @property
    def held_L(self) -> Int64:  # noqa: N802 shapes live in names
        """Pages held, per layer."""
        return self._held_L

    @property
    def num_pages(self) -> int:
        return int(self._held_L.sum())

    @property
    def bytes(self) -> int:
        """Bytes of the pages held, whole pages."""
        return self.num_pages * self._pool.page_bytes

    def full_bytes(self, tokens: int) -> int:
        """Bytes of the pages that `tokens` rows in every layer would take: a full cache."""
        pool = self._pool
        return pages_for(tokens, pool.page_tokens) * len(self.pages) * pool.page_bytes

    def missing_pages(self, rows_L: Int64) -> int:
        """Pages still to be taken so that every layer can hold `rows_L` rows."""
        return int(self._missing(rows_L).sum())

    def reserve(self, rows_L: Int64) -> None:
        """Take the pages that `missing_pages` counts. The caller has checked that they are free."""
        missing_L = self._missing(rows_L)
        for layer in missing_L.nonzero()[0]:
            pages, held = self.pages[layer], len(self.pages[layer])
            pages.extend(self._pool.take(int(missing_L[layer])))
            self._widen(len(pages))
            self.table_LM[layer, held : len(pages)] = pages[held:]
        self._held_L += missing_L

    def trim(self, rows_L: Int64) -> None:
        """Give back the pages that are not needed for `rows_L` rows in each layer."""
        # Rounded up: a page that is needed for one row is needed.
        self._held_L = np.minimum(self._held_L, -(-rows_L // self._pool.page_tokens))
        for pages, held in zip(self.pages, self._held_L, strict=True):
            self._pool.give(pages[held:])
            del pages[held:]

    def cut(self, rows_L: Int64) -> None:
        """Forget all but the first `rows_L` rows of each layer."""
        assert (rows_L >= 0).all(), "a layer of less than nothing"
        assert (rows_L <= self.kept_L).all(), "more rows than there are"
        self.kept_L[:] = rows_L
        self.trim(self.kept_L)
        self.generation += 1  # other pages may come where these were

    def _missing(self, rows_L: Int64) -> Int64:
        wanted_L: Int64 = -(-rows_L // self._pool.page_tokens)
        missing_L: Int64 = np.maximum(wanted_L - self._held_L, 0)
        return missing_L

    def _widen(self, num_pages: int) -> None:
        """Give `table_LM` at least `num_pages` columns, doubling so that growth stays cheap."""
        width = self.table_LM.shape[1]
        if num_pages > width:
            self.table_LM = np.pad(self.table_LM, ((0, 0), (0, max(width, num_pages - width))))

    def append(self, layer: int, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
        """Store S rows after those already kept in `layer`. Pages were reserved before."""
        rows = np.arange(self.kept_L[layer], self.kept_L[layer] + k_KSD.shape[1])
        page_of = np.asarray(self.pages[layer], dtype=np.int64)
        size, device = self._pool.page_tokens, k_KSD.device
        self._pool.write(
            upload(page_of[rows // size], device),
            upload(rows % size, device),
            k_KSD.transpose(0, 1),
            v_KSD.transpose(0, 1),
        )
        self.kept_L[layer] += k_KSD.shape[1]

    def gather(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of this layer's rows in order, K and V, each `[K, kept, D]`."""
        pool, layout = self._pool, self._pool.layout
        shape = (2, layout.num_kv_heads, int(self.kept_L[layer]), layout.head_dim)
        k_KSD, v_KSD = torch.empty(shape, dtype=layout.dtype, device=pool.device)
        self.read(layer, k_KSD, v_KSD)
        return k_KSD, v_KSD

    def read(self, layer: int, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
        """Copy the first S of this layer's rows, in order."""
        self._pool.read(self._page_numbers(layer), k_KSD, v_KSD)

    def copy(self, source: "SequenceCache", rows_L: Int64) -> None:
        """Fill this empty cache with the first `rows_L` rows of `source`, bit for bit."""
        assert not self.kept_L.any(), "rows would be lost"
        self.reserve(rows_L)
        for layer, held in enumerate(self._held_L):
            self._pool.copy(source._page_numbers(layer)[:held], self._page_numbers(layer)[:held])
        self.kept_L[:] = rows_L

    @property
    def rounds(self) -> bool:
        """Whether rows that are read are not quite those that were written."""
        return self._pool.layout.format.scaled

    def _page_numbers(self, layer: int) -> torch.Tensor:
        return upload(np.array(self.pages[layer], dtype=np.int64), self._pool.device)

    def release(self) -> None:
        """Give every page back. The cache is empty afterwards and may be filled again."""
        for pages in self.pages:
            self._pool.give(pages)
            pages.clear()
        self.kept_L[:] = 0
        self._held_L[:] = 0
        self.generation += 1


class DecodeTables:
    """The page tables of a decode batch, one row per sequence, for all layers at once.

    `table_LBM` int32 holds any page past a sequence's last; `kept_LB` int64 counts rows *before*
    the new token; `page_LB`, `slot_LB` int64 say where the new token's row goes.
    """

    def __init__(self, caches: list[SequenceCache], page_tokens: int, device: torch.device) -> None:
        num_layers = len(caches[0].pages)
        width = max(len(pages) for cache in caches for pages in cache.pages)
        table: Int32 = np.zeros((num_layers, len(caches), width), dtype=np.int32)
        kept: Int64 = np.stack([cache.kept_L for cache in caches], axis=1)
        for b, cache in enumerate(caches):
            columns = min(width, cache.table_LM.shape[1])
            table[:, b, :columns] = cache.table_LM[:, :columns]
        # Where the new token's row goes: row `kept` is in page `kept // N` of its sequence.
        page = np.take_along_axis(table, (kept // page_tokens)[..., None], axis=2)[..., 0]
        self.table_LBM = upload(table, device)
        self.kept_LB = upload(kept, device)
        self.page_LB = upload(page.astype(np.int64), device)
        self.slot_LB = upload(kept % page_tokens, device)


def upload(array: Int32 | Int64, device: torch.device) -> torch.Tensor:
    """The array on the device. To CUDA without waiting: the copy joins what is already queued."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
