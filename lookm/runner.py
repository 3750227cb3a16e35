"""One step on the device: embed, forward, look once, sample.

The meeting point of models, cache, attention and policy. During the forward pass every layer calls
`attend` below; that is where keys and values are stored, and where a prompt that is to be
compressed is looked at, so that its raw keys and values exist for one layer at a time.
Knows nothing about queues, text or finish reasons.
"""

import time
from collections import defaultdict

import torch

from lookm.attention import Attention, masked
from lookm.batch import Batch, Segment, Sequence
from lookm.cache import DecodeTables, PagePool
from lookm.graphs import DecodeGraphs
from lookm.look import look
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.features import FeatureCache
from lookm.models.inputs import EmbeddedPrompt, PackedRows
from lookm.policy import Ledger, open_ledger
from lookm.sampling import Choice, sample
from lookm.types import CacheReport, Needs


class Runner:
    """Runs batches. Owns the model and the pool's contents, not who is in them."""

    def __init__(
        self,
        adapter: Adapter,
        pool: PagePool,
        attention: Attention,
        features: FeatureCache,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._adapter = adapter
        self._pool = pool
        self._attention = attention
        self._graphs = graphs
        self.features = features
        self.encode_s = 0.0

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Choice]:
        """Compute one step; returns a new token for each of `batch.sampled`."""
        if self._graphs is None or batch.segments:
            return self._run(batch)
        logits_BV = self._graphs.run(batch.decodes)
        _advance_decodes(batch)
        return sample(logits_BV, [sequence.sampler for sequence in batch.decodes])

    def _run(self, batch: Batch) -> list[Choice]:
        """A step with prompts in it, or any step where decode steps are not recorded."""
        num_looked = self._adapter.dimensions.windows_L.count(None)
        step = _Step(batch, self._pool, self._attention, num_looked)
        hidden_TE = self._adapter.forward(self._embed(batch), step)
        self._advance(batch, step)
        if not batch.sampled:
            return []
        rows = batch.sampled_rows().to(hidden_TE.device)
        logits_BV = self._adapter.logits(hidden_TE[rows])
        return sample(logits_BV, [sequence.sampler for sequence in batch.sampled])

    def _embed(self, batch: Batch) -> PackedRows:
        """The rows of the step: one per decoding sequence, then each segment's."""
        parts = []
        if batch.decodes:
            tokens = [sequence.tokens[-1] for sequence in batch.decodes]
            parts.append(self._rows(tokens, [seq.pos_of(seq.seen) for seq in batch.decodes]))
        for segment in batch.segments:
            sequence, end_of_prompt = segment.sequence, segment.sequence.num_prompt
            if segment.start < end_of_prompt:
                end = min(segment.end, end_of_prompt)
                parts.append(self.prepare(sequence).part(segment.start, end))
            if segment.end > end_of_prompt:  # after a preemption: tokens generated before it
                replayed = range(max(segment.start, end_of_prompt), segment.end)
                tokens = [sequence.tokens[i] for i in replayed]
                parts.append(self._rows(tokens, [sequence.pos_of(i) for i in replayed]))
        return PackedRows.cat(parts)

    def _rows(self, tokens: list[int], positions: list[int]) -> PackedRows:
        """Generated tokens: text, whose position is the same in every row of `[R, T]`."""
        pos_T = torch.tensor(positions, device=self._adapter.device)
        pos_RT = pos_T.expand(self._adapter.position_rows, -1)
        return PackedRows(self._adapter.embed_tokens(tokens), pos_RT)

    def prepare(self, sequence: Sequence) -> EmbeddedPrompt:
        """The prompt with image features merged in; made when the sequence first runs.

        Raises `LookmError` where the request's images are not what its prompt says.
        """
        if sequence.embedded is None:
            started_s = time.monotonic()
            features = self.features.get(sequence.request.images)
            spent_s = time.monotonic() - started_s
            self.encode_s += spent_s
            sequence.clock.encode_s += spent_s
            sequence.embedded = self._adapter.embed_prompt(
                sequence.request.prompt_ids, sequence.request.images, features
            )
            sequence.next_pos = sequence.embedded.next_pos
        return sequence.embedded

    def _advance(self, batch: Batch, step: "_Step") -> None:
        """Move every sequence past the tokens it ran, and report what its prompt kept."""
        _advance_decodes(batch)
        for segment in batch.segments:
            sequence = segment.sequence
            sequence.seen = segment.end
            if segment.looks:
                sequence.cache.trim(sequence.cache.kept_L + sequence.todo)
            sequence.clock.compress_s += step.compress_s[sequence]
            if segment.end >= sequence.num_prompt:
                sequence.embedded = None
                if sequence.report is None:
                    sequence.report = self._report(segment, step)

    def _report(self, segment: Segment, step: "_Step") -> CacheReport:
        sequence = segment.sequence
        num_layers = len(sequence.cache.pages)
        num_prompt = sequence.num_prompt
        evicted = step.evicted[sequence] / num_layers
        return CacheReport(
            policy=sequence.recipe.policy,
            prompt_tokens=num_prompt,
            image_tokens=sequence.request.prompt_ids.count(self._adapter.image_token_id),
            kept_tokens=num_prompt - round(evicted),
            evicted_tokens=round(evicted),
            merged_tokens=round(step.merged[sequence] / num_layers),
            bytes=sequence.cache.bytes,
            full_bytes=sequence.cache.full_bytes(num_prompt),
            compressed=segment.looks,
        )


def _advance_decodes(batch: Batch) -> None:
    for sequence in batch.decodes:
        sequence.cache.kept_L += 1
        sequence.seen += 1


class _Step:
    """One forward pass as its layers see it (`interface.StepContext`)."""

    def __init__(self, batch: Batch, pool: PagePool, attention: Attention, num_looked: int) -> None:
        self._batch = batch
        self._pool = pool
        self._attention = attention
        self._num_looked = num_looked  # layers that policies compress
        self._ledgers: dict[Sequence, Ledger] = {}
        self._tables = (
            DecodeTables([seq.cache for seq in batch.decodes], pool.page_tokens, pool.device)
            if batch.decodes
            else None
        )
        self.compress_s: dict[Sequence, float] = defaultdict(float)
        self.evicted: dict[Sequence, int] = defaultdict(int)
        self.merged: dict[Sequence, int] = defaultdict(int)

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """Decode rows against their pages, then each segment; `[T, H, D]`."""
        num_decodes = len(self._batch.decodes)
        outs = [self._decode(rows.part(0, num_decodes))] if num_decodes else []
        start = num_decodes
        for segment in self._batch.segments:
            end = start + segment.end - segment.start
            outs.append(self._segment(segment, rows.part(start, end)))
            start = end
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _decode(self, rows: LayerRows) -> torch.Tensor:
        tables, layer = self._tables, rows.layer
        assert tables is not None
        self._pool.write(
            tables.page_LB[layer],
            tables.slot_LB[layer],
            rows.k_KTD.transpose(0, 1),
            rows.v_KTD.transpose(0, 1),
        )
        where = (
            rows.q_HTD.transpose(0, 1),
            self._pool.k_PKND,
            self._pool.v_PKND,
            tables.table_LBM[layer],
            tables.kept_LB[layer] + 1,
        )
        if rows.window is None:
            return self._attention.decode(*where, scale=rows.scale)
        return masked.decode(*where, scale=rows.scale, window=rows.window)

    def _segment(self, segment: Segment, rows: LayerRows) -> torch.Tensor:
        """Prefill rows. Layers with a window are not compressed: their rows are the last tokens."""
        cache = segment.sequence.cache
        first = 0
        if segment.looks:
            if rows.window is None:
                return self._look(segment, rows)
            first = max(0, segment.end - rows.window + 1)  # no later token sees those before it
            self.evicted[segment.sequence] += first
        cache.append(rows.layer, rows.k_KTD[:, first:], rows.v_KTD[:, first:])
        if segment.start > 0:
            k_KSD, v_KSD = cache.gather(rows.layer)
            return self._extend(rows, k_KSD, v_KSD)
        mask_TT = self._mask(segment.sequence, rows)
        if mask_TT is None and rows.window is None:
            return self._attention.prefill(
                rows.q_HTD, rows.k_KTD, rows.v_KTD, scale=rows.scale, needs=Needs()
            )[0]
        if mask_TT is None:
            return self._extend(rows, rows.k_KTD, rows.v_KTD)
        return masked.prefill(
            rows.q_HTD,
            rows.k_KTD,
            rows.v_KTD,
            scale=rows.scale,
            mask_TT=mask_TT,
            needs=Needs(),
        )[0]

    def _extend(self, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
        if rows.window is None:
            return self._attention.extend(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale)
        return masked.extend(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, window=rows.window)

    def _look(self, segment: Segment, rows: LayerRows) -> torch.Tensor:
        """Prefill a whole prompt, and store only what its policy keeps of it."""
        sequence = segment.sequence
        assert sequence.embedded is not None
        is_image_T = sequence.embedded.is_image_T
        if sequence not in self._ledgers:
            self._ledgers[sequence] = open_ledger(sequence.recipe, is_image_T, self._num_looked)
        seen = look(
            rows.q_HTD,
            rows.k_KTD,
            rows.v_KTD,
            is_image_T=is_image_T,
            mask_TT=self._mask(sequence, rows),
            recipe=sequence.recipe,
            ledger=self._ledgers[sequence],
            scale=rows.scale,
            attention=self._attention,
            layer=rows.layer,
            num_layers=len(sequence.cache.pages),
        )
        sequence.cache.append(rows.layer, seen.compressed.key, seen.compressed.value)
        self.compress_s[sequence] += seen.compress_s
        self.evicted[sequence] += seen.compressed.num_evicted
        self.merged[sequence] += seen.compressed.num_merged
        return seen.out_THD

    def _mask(self, sequence: Sequence, rows: LayerRows) -> torch.Tensor | None:
        """Who sees whom in this layer, where the prompt is not causal."""
        mask = sequence.embedded.mask if sequence.embedded else None
        return mask.of(rows.window) if mask else None
