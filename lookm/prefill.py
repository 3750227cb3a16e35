"""One layer of one prompt's prefill: its rows come in tiles, in order, or all at once.

Where attention, policy, pages and store meet for a layer: rows go to the store, are attended to
with all before them, and are kept in pages: as they are, or when the layer's last tile is done what
the policy keeps of them. Raw keys and values exist for this layer alone.
"""

import torch

from lookm.attention import Attention, masked
from lookm.batch import Prefill
from lookm.look import LayerLook, PromptLook
from lookm.models.attention_interface import LayerRows
from lookm.prompts import Prompts
from lookm.types import Needs

NOTHING = Needs()


class LayerPrefill:
    """Attends the rows `prefill.start .. prefill.end` of a layer, tile after tile.

    Before them stand `before` rows that earlier turns kept, or the rows that the store knows.
    """

    def __init__(self, prefill: Prefill, prompts: Prompts, attention: Attention) -> None:
        self._prefill = prefill
        self._prompts = prompts
        self._attention = attention
        self._num_new = prefill.end - prefill.start
        self._num_done = 0
        self._num_base = 0  # rows of the buffer that were there before
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None  # K and V `[K, S, D]`
        self._queries: list[torch.Tensor] = []
        self._layer: LayerLook | None = None
        self._cuts: list[int] = []  # where sums are to be taken, of the whole prefill

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """The attention output of the next rows, `[T, H, D]`."""
        look = self._prefill.sequence.look if self._prefill.compresses else None
        if not self._num_done:
            self._open(rows, look)
        k_KSD, v_KSD = self._so_far(rows)
        self._capture(rows, k_KSD, v_KSD)
        if look is None:
            out_THD = self._plain(rows, k_KSD, v_KSD)
        elif rows.window is None:
            out_THD = self._looked_at(rows, k_KSD, v_KSD)
        else:
            out_THD = self._windowed(rows, k_KSD, v_KSD, look)
        self._num_done += rows.q_HTD.shape[1]
        return out_THD

    def _open(self, rows: LayerRows, look: PromptLook | None) -> None:
        """Room for what is before these rows and for all of them, where they are not alone."""
        prefill, cache = self._prefill, self._prefill.sequence.cache
        if self._prompts.follows(prefill):
            k_SKD, v_SKD = self._prompts.load(prefill, rows.layer, self._num_new)
            self._rows = k_SKD.transpose(0, 1), v_SKD.transpose(0, 1)
        elif prefill.start > 0 or rows.q_HTD.shape[1] < self._num_new:
            num_base, (heads, _, size) = int(cache.kept_L[rows.layer]), rows.k_KTD.shape
            shape = (heads, num_base + self._num_new, size)
            self._rows = rows.k_KTD.new_empty(shape), rows.k_KTD.new_empty(shape)
            if num_base:
                base = (all_KSD[:, :num_base] for all_KSD in self._rows)
                cache.read(rows.layer, *base)
        if self._rows is not None:
            self._num_base = self._rows[0].shape[1] - self._num_new
        if look is not None and rows.window is None:
            known = self._prompts.seen(prefill.sequence, look)
            self._layer = look.layer(rows.layer, rows.scale, known, before=self._num_kept)
            self._cuts = self._prompts.cuts(prefill)

    @property
    def _num_kept(self) -> int:
        """Rows in front that are no part of what is looked at: those of earlier turns."""
        return 0 if self._prompts.follows(self._prefill) else self._num_base

    def _so_far(self, rows: LayerRows) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the layer up to these rows, `[K, S, D]`."""
        if self._rows is None:
            return rows.k_KTD, rows.v_KTD
        start = self._num_base + self._num_done
        end = start + rows.k_KTD.shape[1]
        for all_KSD, new_KTD in zip(self._rows, (rows.k_KTD, rows.v_KTD), strict=True):
            all_KSD[:, start:end] = new_KTD
        k_KSD, v_KSD = self._rows
        return k_KSD[:, :end], v_KSD[:, :end]

    def _capture(self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
        """These rows for the store; with a parked conversation's, where that lacks them."""
        sequence, start = self._prefill.sequence, self._prefill.start + self._num_done
        k_KTD, v_KTD = rows.k_KTD, rows.v_KTD
        if sequence.capture is not None and start == sequence.num_taken > 0:
            start = sequence.capture.start
            k_KTD, v_KTD = k_KSD[:, start:], v_KSD[:, start:]
        self._prompts.capture(sequence, rows.layer, start, k_KTD, v_KTD)

    def _plain(self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
        """Full cache: the rows are kept as they are.

        Where storing rounds them, they are seen as they are stored: whoever comes later, in another
        chunk, after a preemption or in another turn, sees the same.
        """
        cache = self._prefill.sequence.cache
        held = int(cache.kept_L[rows.layer])
        cache.append(rows.layer, k_KSD[:, held:], v_KSD[:, held:])
        if cache.rounds:
            k_KSD, v_KSD = cache.gather(rows.layer)
        return self._seen(rows, k_KSD, v_KSD)

    def _windowed(
        self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor, look: PromptLook
    ) -> torch.Tensor:
        """A layer with a window is not compressed: what later tokens can see of it is kept."""
        if self._num_done + rows.q_HTD.shape[1] == self._num_new:
            assert rows.window is not None
            before = self._num_kept
            # Nothing is lost by what is left out, but it is not kept: usage counts what is held.
            first = max(0, k_KSD.shape[1] - before - rows.window + 1)
            look.num_evicted += first
            if look.held is not None:
                look.held.add_recent(first, rows.k_KTD.shape[0])
            cache = self._prefill.sequence.cache
            cache.append(rows.layer, k_KSD[:, before + first :], v_KSD[:, before + first :])
        return self._seen(rows, k_KSD, v_KSD)

    def _seen(self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
        """Attention and nothing else."""
        mask_TT = self._mask(rows) if self._prefill.start == 0 else None
        if mask_TT is not None:
            out_THD, _ = masked.prefill(
                rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, mask_TT=mask_TT, needs=NOTHING
            )
            return out_THD
        if rows.window is not None:
            return masked.extend(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, window=rows.window)
        return self._attention.prefill(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, needs=NOTHING)[0]

    def _looked_at(self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
        """Attention with what the policy wants to know, and at the end what it keeps.

        The rows come in parts where sums are to be taken for prompts that begin alike.
        """
        prefill, layer = self._prefill, self._layer
        assert layer is not None
        start = prefill.start + self._num_done
        end = start + rows.q_HTD.shape[1]
        cuts = [cut for cut in self._cuts if start <= cut < end]
        if cuts[:1] == [start]:
            self._prompts.snapshot(prefill.sequence, cuts.pop(0), layer.seen)
        mask_TT = self._mask(rows)
        if mask_TT is not None:  # whose rows are not shared
            out_THD = layer.attend(rows.q_HTD, k_KSD, v_KSD, mask_TT=mask_TT)
        else:
            ends = [end_of_part - start for end_of_part in (*cuts, end)]
            out_THD, found = layer.attend_parts(rows.q_HTD, k_KSD, v_KSD, ends)
            for cut, sums in zip(cuts, found, strict=False):
                self._prompts.snapshot(prefill.sequence, cut, sums)
        if layer.needs_queries or end == prefill.end:
            self._queries.append(rows.q_HTD)
        if end == prefill.end:
            before, q_HTD = self._num_kept, torch.cat(self._queries, dim=1)
            kept = layer.compress(q_HTD, k_KSD[:, before:], v_KSD[:, before:])
            prefill.sequence.cache.append(rows.layer, kept.key, kept.value)
        return out_THD

    def _mask(self, rows: LayerRows) -> torch.Tensor | None:
        """Who sees whom in this layer, where the prompt is not causal."""
        embedded = self._prefill.sequence.embedded
        return embedded.mask.of(rows.window) if embedded and embedded.mask else None


class PromptContext:
    """A prompt's prefill as the layers of a forward pass see it (`StepContext`)."""

    def __init__(self, prefill: Prefill, prompts: Prompts, attention: Attention) -> None:
        self._prefill = prefill
        self._prompts = prompts
        self._attention = attention
        self._layer: tuple[int, LayerPrefill] | None = None

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """The next rows of a layer; see `LayerPrefill`."""
        if self._layer is None or self._layer[0] != rows.layer:
            layer = LayerPrefill(self._prefill, self._prompts, self._attention)
            self._layer = rows.layer, layer
        return self._layer[1].attend(rows)
