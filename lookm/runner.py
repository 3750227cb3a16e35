"""One step on the device: embed, forward, look once, sample.

The meeting point of models, cache, attention and policy. During the forward pass every layer calls
`attend` below; that is where keys and values are stored, and where a prompt that is to be
compressed is looked at, so that its raw keys and values exist for one layer at a time.
Knows nothing about queues, text or finish reasons.
"""

import time
from itertools import pairwise

import torch

from lookm.attention import Backend, masked
from lookm.batch import Batch, Encode, Prefill
from lookm.cache import DecodeTables, PagePool
from lookm.graphs import DecodeGraphs
from lookm.look import PromptLook
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.features import FeatureCache
from lookm.models.inputs import PackedRows
from lookm.prompts import Prompts
from lookm.sampling import SampledToken, sample
from lookm.sequence import SequenceState
from lookm.types import CacheReport, Needs

NOTHING = Needs()


class Runner:
    """Runs batches. Owns the model and the pool's contents, not who is in them."""

    def __init__(
        self,
        adapter: Adapter,
        pool: PagePool,
        backend: Backend,
        features: FeatureCache,
        prompts: Prompts,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._adapter = adapter
        self._pool = pool
        self._backend = backend
        self._graphs = graphs
        self.features = features
        self.prompts = prompts
        self.encode_s = 0.0

    def prepare(self, unit: Encode | Prefill) -> Prefill | None:
        """What a prompt needs before it is in a forward pass: what is known of it, features of its
        images, embeddings. Returns a prefill that is ready, from where it is to begin.

        Raises `LookmError` where the request's images are not what its prompt says.
        """
        sequence = unit.sequence
        if sequence.prefilling and sequence.embedded is None:
            self.prompts.open(sequence)
        if isinstance(unit, Encode):
            self._encode(unit)
            return None
        if sequence.prefilling and sequence.embedded is None:
            if sequence.num_unencoded:
                return None
            self._embed_prompt(sequence)
            unit = self.prompts.resume(unit)
        return unit if unit.end > unit.start else None

    def _encode(self, unit: Encode) -> None:
        """Images whose rows are all known are not encoded: nobody will read their features."""
        started_s = time.monotonic()
        sequence, adapter = unit.sequence, self._adapter
        num_known = self.prompts.num_known_images(sequence)
        for image in sequence.request.images[unit.start : min(unit.end, num_known)]:
            sequence.features.append(adapter.no_features(image))
        images = sequence.request.images[max(unit.start, num_known) : unit.end]
        if images:
            sequence.features += self.features.get(images)
        spent_s = time.monotonic() - started_s
        self.encode_s += spent_s
        sequence.clock.encode_s += spent_s

    def _embed_prompt(self, sequence: SequenceState) -> None:
        """Merge the features in."""
        request, adapter = sequence.request, self._adapter
        embedded = adapter.embed_prompt(request.prompt_ids, request.images, sequence.features)
        sequence.embedded = embedded
        sequence.next_pos = embedded.next_pos
        sequence.features.clear()

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken]:
        """Compute one step; returns a new token for each of `batch.sampled`."""
        if self._graphs is None or batch.prefills:
            return self._run(batch)
        logits_BV = self._graphs.run(batch.decodes)
        _advance_decodes(batch)
        return sample(logits_BV, [sequence.sampler for sequence in batch.decodes])

    def _run(self, batch: Batch) -> list[SampledToken]:
        """A step with prompts in it, or any step where decode steps are not recorded."""
        step = _Step(batch, self._pool, self._backend, self.prompts)
        hidden_TE = self._adapter.forward(self._embed(batch), step)
        self._advance(batch)
        if not batch.sampled:
            return []
        rows = batch.sampled_rows().to(hidden_TE.device)
        logits_BV = self._adapter.logits(hidden_TE[rows])
        return sample(logits_BV, [sequence.sampler for sequence in batch.sampled])

    def _embed(self, batch: Batch) -> PackedRows:
        """The rows of the step: one per decoding sequence, then each prefill's."""
        parts = []
        if batch.decodes:
            tokens = [sequence.tokens[-1] for sequence in batch.decodes]
            parts.append(self._rows(tokens, [seq.pos_of(seq.seen) for seq in batch.decodes]))
        for prefill in batch.prefills:
            sequence, end_of_prompt = prefill.sequence, prefill.sequence.num_prompt
            if prefill.start < end_of_prompt:
                assert sequence.embedded is not None, "a prefill is run when it is ready"
                end = min(prefill.end, end_of_prompt)
                parts.append(sequence.embedded.part(prefill.start, end))
            if prefill.end > end_of_prompt:  # after a preemption: tokens generated before it
                replayed = range(max(prefill.start, end_of_prompt), prefill.end)
                tokens = [sequence.tokens[i] for i in replayed]
                parts.append(self._rows(tokens, [sequence.pos_of(i) for i in replayed]))
        return PackedRows.cat(parts)

    def _rows(self, tokens: list[int], positions: list[int]) -> PackedRows:
        """Generated tokens: text, whose position is the same in every row of `[R, T]`."""
        pos_T = torch.tensor(positions, device=self._adapter.device)
        pos_RT = pos_T.expand(self._adapter.position_rows, -1)
        return PackedRows(self._adapter.embed_tokens(tokens), pos_RT)

    def _advance(self, batch: Batch) -> None:
        """Move every sequence past the tokens it ran, and report what its prompt kept."""
        _advance_decodes(batch)
        for prefill in batch.prefills:
            sequence = prefill.sequence
            sequence.seen = prefill.end
            self.prompts.keep(prefill)
            if prefill.compresses:
                # Reserved was the bound; what the layers did not take goes back, but for tokens
                # still to come.
                sequence.cache.trim(sequence.cache.kept_L + sequence.todo)
            if prefill.end >= sequence.num_prompt:
                if sequence.report is None:
                    sequence.report = self._report(sequence)
                if sequence.look is not None:
                    sequence.clock.compress_s += sequence.look.compress_s
                sequence.end_prefill()

    def _report(self, sequence: SequenceState) -> CacheReport:
        num_layers = len(sequence.cache.pages)
        num_prompt, look, taken = sequence.num_prompt, sequence.look, sequence.taken
        evicted = look.num_evicted / num_layers if look else 0
        merged = look.num_merged / num_layers if look else 0
        compressed = look is not None
        if taken is not None and taken.num_compressed:
            evicted += taken.report.evicted_tokens
            merged += taken.report.merged_tokens
            compressed = True
        return CacheReport(
            policy=sequence.recipe.policy,
            prompt_tokens=num_prompt,
            image_tokens=sequence.request.prompt_ids.count(self._adapter.image_token_id),
            kept_tokens=num_prompt - round(evicted),
            evicted_tokens=round(evicted),
            merged_tokens=round(merged),
            bytes=sequence.cache.bytes,
            full_bytes=sequence.cache.full_bytes(num_prompt),
            compressed=compressed,
            cached_tokens=sequence.prefix.num_tokens if sequence.prefix else sequence.num_taken,
        )


def _advance_decodes(batch: Batch) -> None:
    for sequence in batch.decodes:
        sequence.cache.kept_L += 1
        sequence.seen += 1


class _Step:
    """One forward pass as its layers see it (`attention_interface.StepContext`)."""

    def __init__(self, batch: Batch, pool: PagePool, backend: Backend, prompts: Prompts) -> None:
        self._batch = batch
        self._prompts = prompts
        self._pool = pool
        self._attention = backend.attention
        self._tables = (
            DecodeTables([seq.cache for seq in batch.decodes], pool.page_tokens, pool.device)
            if batch.decodes
            else None
        )

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """Decode rows against their pages, then each prefill; `[T, H, D]`."""
        num_decodes = len(self._batch.decodes)
        outs = [self._decode(rows.part(0, num_decodes))] if num_decodes else []
        start = num_decodes
        for prefill in self._batch.prefills:
            end = start + prefill.end - prefill.start
            outs.append(self._prefill(prefill, rows.part(start, end)))
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
            self._pool.pages,
            tables.table_LBM[layer],
            tables.kept_LB[layer] + 1,
        )
        if rows.window is None:
            return self._attention.decode(*where, scale=rows.scale)
        return masked.decode(*where, scale=rows.scale, window=rows.window)

    def _prefill(self, prefill: Prefill, rows: LayerRows) -> torch.Tensor:
        """Prefill rows. Layers with a window are not compressed: their rows are the last tokens."""
        sequence, before, first = prefill.sequence, 0, 0
        look = sequence.look if prefill.compresses else None
        k_KSD, v_KSD = rows.k_KTD, rows.v_KTD
        if self._prompts.follows(prefill):
            k_KSD, v_KSD = self._prompts.with_prefix(prefill, rows)
        elif look is not None and sequence.taken is not None:
            before = int(sequence.cache.kept_L[rows.layer])
            k_KSD, v_KSD = self._after_pages(sequence, rows)
        if look is not None:
            if rows.window is None:
                self._prompts.capture(sequence, rows.layer, prefill.start, rows.k_KTD, rows.v_KTD)
                return self._look(prefill, look, rows, k_KSD, v_KSD, before)
            # No later token sees the rows before these. Nothing is lost by it, but it is not kept:
            # usage counts what is held.
            first = max(0, k_KSD.shape[1] - before - rows.window + 1)
            look.num_evicted += first
        sequence.cache.append(rows.layer, k_KSD[:, before + first :], v_KSD[:, before + first :])
        # From the first row on the rows themselves are the cache: nothing to gather.
        if prefill.start > 0 and look is None and not self._prompts.follows(prefill):
            k_KSD, v_KSD = sequence.cache.gather(rows.layer)
        self._capture(prefill, rows, k_KSD, v_KSD)
        mask_TT = self._mask(sequence, rows) if prefill.start == 0 else None
        if mask_TT is not None:
            out_THD, _ = masked.prefill(
                rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, mask_TT=mask_TT, needs=NOTHING
            )
            return out_THD
        if rows.window is not None:
            return masked.extend(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, window=rows.window)
        return self._attention.prefill(rows.q_HTD, k_KSD, v_KSD, scale=rows.scale, needs=NOTHING)[0]

    def _after_pages(
        self, sequence: SequenceState, rows: LayerRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the sequence holds of a layer, and these rows behind it."""
        k_KSD, v_KSD = sequence.cache.gather(rows.layer)
        return torch.cat((k_KSD, rows.k_KTD), dim=1), torch.cat((v_KSD, rows.v_KTD), dim=1)

    def _capture(
        self, prefill: Prefill, rows: LayerRows, k_KSD: torch.Tensor, v_KSD: torch.Tensor
    ) -> None:
        """These rows for the store; with a parked conversation's, where that lacks them."""
        sequence, k_KTD, v_KTD, start = prefill.sequence, rows.k_KTD, rows.v_KTD, prefill.start
        if sequence.capture is not None and start == sequence.num_taken > 0:
            start = sequence.capture.start
            k_KTD, v_KTD = k_KSD[:, start:], v_KSD[:, start:]
        self._prompts.capture(sequence, rows.layer, start, k_KTD, v_KTD)

    def _look(
        self,
        prefill: Prefill,
        look: PromptLook,
        rows: LayerRows,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        before: int,
    ) -> torch.Tensor:
        """Prefill a prompt, and store only what its policy keeps of it.

        The first `before` of the S rows are what earlier turns kept: they are seen, and left as
        they are. The others come in parts where sums are to be taken for prompts that begin alike.
        """
        sequence, start = prefill.sequence, prefill.start
        mask_TT = self._mask(sequence, rows)
        known = self._prompts.statistics(sequence, look)
        layer = look.layer(rows.layer, rows.scale, known, before=before)
        outs = []
        for first, end in pairwise((start, *self._prompts.cuts(prefill), prefill.end)):
            q_HTD = rows.q_HTD[:, first - start : end - start]
            seen = k_KSD.shape[1] - (prefill.end - end)
            outs.append(layer.attend(q_HTD, k_KSD[:, :seen], v_KSD[:, :seen], mask_TT=mask_TT))
            if end < prefill.end:
                self._prompts.snapshot(sequence, end, layer.statistics)
        kept = layer.compress(rows.q_HTD, k_KSD[:, before:], v_KSD[:, before:])
        sequence.cache.append(rows.layer, kept.key, kept.value)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _mask(self, sequence: SequenceState, rows: LayerRows) -> torch.Tensor | None:
        """Who sees whom in this layer, where the prompt is not causal."""
        mask = sequence.embedded.mask if sequence.embedded else None
        return mask.of(rows.window) if mask else None
