"""Decode steps on buffers that never move, so that a CUDA graph can replay them.

    update   host -> device: who sits in which row, one small copy; page tables only where they grew
    replay   embed, all layers, logits: `_Static.step`, recorded once per batch size
    sample   on the device, after it; reading the tokens is the step's one wait

The step itself never asks the host (`tests/lookm/test_graphs.py` proves it), and is the same code
whether it is recorded or called: on a CPU it is simply called. Batches are padded to the next
recorded size. A row without a sequence has length 0 and the pool's scratch page.

    sizes 1 2 4 8 ..   3 sequences in the rows of size 4:   row 0  seq a   pages 3 9 4
                                                            row 1  seq b   pages 5
                                                            row 2  (free)  scratch
                                                            row 3  seq c   pages 8 1

A sequence keeps its row while it can, so that its table stays where it is. Knows nothing about
prompts: prefill steps, and steps that mix, run without a graph.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from lookm.attention import Backend
from lookm.cache import PagePool, SequenceCache, upload
from lookm.config import EngineConfig, EnginePlan
from lookm.errors import ConfigError
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.inputs import PackedRows
from lookm.pages import pages_for
from lookm.sequence import SequenceState

logger = logging.getLogger(__name__)

Replay = Callable[[], None]
WARM_UPS = 2  # compile kernels and make the libraries' workspaces before recording


class DecodeGraphs:
    """Runs decode-only steps. `sizes` are the batch sizes there are, ascending."""

    def __init__(
        self,
        adapter: Adapter,
        pool: PagePool,
        backend: Backend,
        sizes: list[int],
        width: int,
        *,
        replay: bool,
    ) -> None:
        self._replay = replay
        self._rows = _Rows(adapter.dimensions.num_layers, sizes[-1], width, pool)
        self._static = _Static(adapter, pool, backend, self._rows)
        self._replays: dict[int, Replay] = {}
        self.sizes = sizes

    @torch.inference_mode()
    def record(self) -> None:
        """Record every size, largest first, so that the smaller ones reuse its memory.

        Without `replay` nothing is recorded: the same step is called, with the same results.
        """
        started_s = time.monotonic()
        memory = None
        # The largest graph's memory holds the smaller ones', which never run at the same time.
        for size in reversed(self.sizes):
            if not self._replay:
                self._replays[size] = _called(self._static, size)
                continue
            graph = _recorded(self._static, size, memory)
            memory = graph.pool()
            self._replays[size] = graph.replay
        logger.info(
            "decode steps: %s for batches of up to %s, %.1f s",
            "recorded" if memory else "static",
            self.sizes,
            time.monotonic() - started_s,
        )

    def run(self, sequences: list[SequenceState]) -> torch.Tensor:
        """Float32 logits `[B, V]` of the next tokens. Valid until the next call."""
        size = next(size for size in self.sizes if size >= len(sequences))
        rows = self._rows.update(sequences, size)
        self._replays[size]()
        logits_BV = self._static.logits_BV
        if rows == list(range(len(rows))):
            return logits_BV[: len(rows)]
        return logits_BV[upload(np.array(rows), self._rows.device)]


class _Rows:
    """Who sits in which row, and the device's copy of it."""

    def __init__(self, num_layers: int, num_rows: int, width: int, pool: PagePool) -> None:
        self.device = pool.device
        self._scratch = pool.scratch_page
        cuda = self.device.type == "cuda"
        shape = (num_layers + 2, num_rows)  # kept rows of every layer, ids, positions: one copy
        self._host = torch.zeros(shape, dtype=torch.int64, pin_memory=cuda)
        self._block = self._host.numpy()
        self._sent = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.kept_LB, self.ids_B, self.pos_B = self._sent[:-2], self._sent[-2], self._sent[-1]
        self.table_LBM = torch.full(
            (num_layers, num_rows, width), self._scratch, dtype=torch.int32, device=self.device
        )
        self._held_LB = np.zeros((num_layers, num_rows), dtype=np.int64)
        self._row_of: dict[SequenceCache, int] = {}
        self._generation_B = [-1] * num_rows

    def update(self, sequences: list[SequenceState], size: int) -> list[int]:
        """Seat the sequences in the first `size` rows; returns each one's row."""
        rows = self._seat([sequence.cache for sequence in sequences], size)
        # Rows without a sequence: length 0, token 0, position 0; their page is the scratch page.
        self._block[:] = 0
        for row, sequence in zip(rows, sequences, strict=True):
            self._block[:-2, row] = sequence.cache.kept_L
            self._block[-2, row] = sequence.tokens[-1]
            self._block[-1, row] = sequence.pos_of(sequence.seen)
        self._sent.copy_(self._host, non_blocking=True)
        return rows

    def _seat(self, caches: list[SequenceCache], size: int) -> list[int]:
        """Rows for `caches`, the same as before where possible; their tables are brought up."""
        before, self._row_of = self._row_of, {}
        stays = {cache: before[cache] for cache in caches if before.get(cache, size) < size}
        taken = set(stays.values())
        free = (row for row in range(size) if row not in taken)
        cells: list[tuple[int, int, int, int]] = []
        for cache in caches:
            row = stays.get(cache)
            if row is None:
                row = next(free)
                self._generation_B[row] = -1
            self._row_of[cache] = row
            cells += self._follow(row, cache)
        for row in set(before.values()) - set(self._row_of.values()):
            self._generation_B[row] = -1
            cells += [(layer, row, 0, self._scratch) for layer in range(len(self._held_LB))]
        self._put(cells)
        return [self._row_of[cache] for cache in caches]

    def _follow(self, row: int, cache: SequenceCache) -> Iterable[tuple[int, int, int, int]]:
        """Cells `(layer, row, column, page)` that are new; the whole row is sent where more is."""
        held_L = cache.held_L
        grown_L = held_L - self._held_LB[:, row]
        known = self._generation_B[row] == cache.generation
        self._held_LB[:, row] = held_L
        self._generation_B[row] = cache.generation
        # A step adds at most one page a layer; anything else is another sequence, or one that began
        # again.
        if not known or (grown_L < 0).any() or (grown_L > 1).any():
            pages_LM = np.ascontiguousarray(cache.table_LM[:, : max(1, int(held_L.max()))])
            self.table_LBM[:, row, : pages_LM.shape[1]] = upload(pages_LM, self.device)
            return []
        return [
            (int(layer), row, int(held_L[layer]) - 1, int(cache.table_LM[layer, held_L[layer] - 1]))
            for layer in grown_L.nonzero()[0]
        ]

    def _put(self, cells: list[tuple[int, int, int, int]]) -> None:
        if not cells:
            return
        sent_4C = upload(np.array(cells).T.copy(), self.device)
        self.table_LBM[sent_4C[0], sent_4C[1], sent_4C[2]] = sent_4C[3].int()


class _Static:
    """The step itself, a function of the buffers in `_Rows` and of nothing else."""

    def __init__(self, adapter: Adapter, pool: PagePool, backend: Backend, rows: _Rows) -> None:
        self._adapter, self._pool, self._rows = adapter, pool, rows
        self._attention = backend.attention
        num_logits = adapter.logits(adapter.embed_tokens([0])).shape[-1]
        shape = (rows.ids_B.shape[0], num_logits)
        self.logits_BV = torch.zeros(shape, dtype=torch.float32, device=rows.device)

    def step(self, size: int) -> None:
        """One token for each of the first `size` rows: its K and V to pages, its logits out."""
        rows, page_tokens = self._rows, self._pool.page_tokens
        kept_LB, table_LBM = rows.kept_LB[:, :size], rows.table_LBM[:, :size]
        page_LB1 = table_LBM.gather(2, (kept_LB // page_tokens)[..., None])
        self._table_LBM = table_LBM
        self._page_LB = page_LB1[..., 0].long()
        self._slot_LB = kept_LB % page_tokens
        self._length_LB = kept_LB + 1
        pos_RB = rows.pos_B[:size].expand(self._adapter.position_rows, -1)
        embeds_BE = self._adapter.embed_tokens(rows.ids_B[:size])
        hidden_BE = self._adapter.forward(PackedRows(embeds_BE, pos_RB), self)
        self.logits_BV[:size] = self._adapter.logits(hidden_BE)

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """`interface.StepContext`: every row against its pages; `[B, H, D]`."""
        assert rows.window is None, "models with windows are not recorded"
        pool, layer = self._pool, rows.layer
        pool.write(
            self._page_LB[layer],
            self._slot_LB[layer],
            rows.k_KTD.transpose(0, 1),
            rows.v_KTD.transpose(0, 1),
        )
        return self._attention.decode(
            rows.q_HTD.transpose(0, 1),
            pool.pages,
            self._table_LBM[layer],
            self._length_LB[layer],
            scale=rows.scale,
        )


def make_graphs(
    config: EngineConfig, plan: EnginePlan, adapter: Adapter, pool: PagePool, backend: Backend
) -> DecodeGraphs | None:
    """Decode steps on static buffers, recorded on CUDA unless "off"; None where they cannot run.

    A CPU, which records nothing, has them where they are "on". What keeps them from running is
    logged. Raises `ConfigError` where "on" is impossible.
    """
    cuda = pool.device.type == "cuda"
    if not cuda and config.graphs != "on":
        return None
    problem = _problem(adapter, pool, backend)
    if problem is not None and config.graphs == "on":
        raise ConfigError(f"graphs 'on' cannot be used: {problem}.")
    if problem is not None:
        logger.warning("decode steps: not recorded, because %s", problem)
        return None
    width = pages_for(plan.max_context_tokens, plan.page_tokens)
    sizes, replay = batch_sizes(config.max_running), cuda and config.graphs != "off"
    graphs = DecodeGraphs(adapter, pool, backend, sizes, width, replay=replay)
    graphs.record()
    return graphs


def batch_sizes(max_size: int) -> list[int]:
    """1, 2, 4, 8, then every 8 up to 64, every 32 beyond: little padding, few recordings."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_size + 32, 32)]
    return [*(size for size in sizes if size < max_size), max_size]


def _problem(adapter: Adapter, pool: PagePool, backend: Backend) -> str | None:
    if any(adapter.dimensions.windows_L):
        return "some layers of this model have a sliding window"
    if pool.device.type == "cuda" and backend.reads_on_host:
        return f"attention {backend.name!r} reads lengths on the host"
    return None


def _called(static: _Static, size: int) -> Replay:
    return lambda: static.step(size)


def _recorded(static: _Static, size: int, memory: Any) -> torch.cuda.CUDAGraph:
    """`static.step(size)` as a graph, in the memory of those before it."""
    # Warm-ups run beside the stream that is recorded, as CUDA graphs ask for.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            static.step(size)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory):
        static.step(size)
    return graph
