"""One step on the device: embed, forward, look once, sample.

The meeting point of models, cache, attention and policy. During the forward pass every layer calls
`attend` below; that is where keys and values are stored, and where a prompt that is to be
compressed is looked at, so that its raw keys and values exist for one layer at a time.
Knows nothing about queues, text or finish reasons.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

import torch

from lookm.attention import Backend, masked
from lookm.batch import Batch, Encode, Prefill
from lookm.cache import DecodeTables, PagePool
from lookm.device import is_out_of_memory
from lookm.graphs import DecodeGraphs
from lookm.held import Before, positions
from lookm.kept import KeptPositions
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.features import FeatureCache
from lookm.models.inputs import PackedRows
from lookm.models.tiles import Paused, TiledForward
from lookm.models.vision import Pause, never
from lookm.prefill import PromptContext
from lookm.prompts import Prompts
from lookm.sampling import SampledToken, sample
from lookm.sequence import PARTS, SequenceState
from lookm.types import CacheReport, ImageInput


class Runner:
    """Runs batches. Owns the model and the pool's contents, not who is in them."""

    def __init__(
        self,
        adapter: Adapter,
        pool: PagePool,
        backend: Backend,
        image_cache_bytes: int,
        prompts: Prompts,
        graphs: DecodeGraphs | None = None,
        *,
        tile_tokens: int,
    ) -> None:
        self._adapter = adapter
        self._tile_tokens = tile_tokens
        self._pool = pool
        self._backend = backend
        self._graphs = graphs
        self.features = FeatureCache(self._encode_now, image_cache_bytes)
        self.prompts = prompts
        self.encode_s = 0.0
        self._pause: Pause = never

    def prepare(self, unit: Encode | Prefill, pause: Pause = never) -> Prefill | None:
        """What a prompt needs before it is in a forward pass: what is known of it, features of its
        images, embeddings. Returns a prefill that is ready, from where it is to begin.

        Images are encoded until `pause`, at least a layer of one, on a CPU; on a GPU as many as go
        through the tower together take little longer than one.

        Raises `LookmError` where the request's images are not what its prompt says.
        """
        sequence = unit.sequence
        if sequence.prefilling and sequence.embedded is None:
            self.prompts.open(sequence)
        if isinstance(unit, Encode):
            self._pause = pause
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
        together = adapter.device.type == "cuda" and not sequence.alone
        one_by_one = [images] if together else [(image,) for image in images]
        with contextlib.suppress(Paused):
            for count, some in enumerate(filter(None, one_by_one)):
                if count and self._pause():
                    break
                sequence.features += self.features.get(some)
        spent_s = time.monotonic() - started_s
        self.encode_s += spent_s
        sequence.clock.encode_s += spent_s

    def _encode_now(self, images: Sequence[ImageInput]) -> list[torch.Tensor]:
        """Raises `Paused`."""
        return self._adapter.vision.encode_images(images, self._pause)

    def _embed_prompt(self, sequence: SequenceState) -> None:
        """Merge the features in."""
        request, adapter = sequence.request, self._adapter
        embedded = adapter.embed_prompt(
            request.prompt_ids,
            request.images,
            sequence.features,
            num_known=sequence.num_known,
        )
        sequence.embedded = embedded
        sequence.next_pos = embedded.next_pos
        sequence.features.clear()

    # A step that fails may be run again: its sequences and samplers change after all that may fail.

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken]:
        """Compute one step; returns a new token for each of `batch.sampled`."""
        if self._graphs is None or batch.prefills:
            return self._run(batch)
        logits_BV = self._graphs.run(batch.decodes)
        chosen = sample(logits_BV, [sequence.sampler for sequence in batch.decodes])
        _advance_decodes(batch)
        return chosen

    @torch.inference_mode()
    def advance(self, prefill: Prefill, pause: Callable[[], bool]) -> list[SampledToken] | None:
        """Run a long prefill on until `pause`: None, or at its end the token that follows, if any.

        It runs layer by layer in tiles of rows, at least one tile at a time.
        """
        sequence = prefill.sequence
        if sequence.job is None:
            context = PromptContext(prefill, self.prompts, self._backend.attention)
            rows = self._embed(Batch(prefills=[prefill]))
            tile_tokens = max(1, self._tile_tokens // (PARTS if sequence.alone else 1))
            sequence.job = TiledForward(rows, context, tile_tokens, prefill.start)
        hidden_TE = self._adapter.advance(sequence.job, pause)
        if hidden_TE is None:
            return None
        sequence.job = None
        chosen: list[SampledToken] = []
        if prefill.completes:
            chosen = sample(self._adapter.logits(hidden_TE[-1:]), [sequence.sampler])
        self._end(prefill)
        return chosen

    def _run(self, batch: Batch) -> list[SampledToken]:
        """A step with prompts in it, or any step where decode steps are not recorded."""
        step = _Step(batch, self._pool, self._backend, self.prompts)
        hidden_TE = self._adapter.forward(self._embed(batch), step)
        chosen: list[SampledToken] = []
        if batch.sampled:
            rows = batch.sampled_rows().to(hidden_TE.device)
            logits_BV = self._adapter.logits(hidden_TE[rows])
            chosen = sample(logits_BV, [sequence.sampler for sequence in batch.sampled])
        self._advance(batch)
        return chosen

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
            self._end(prefill)

    def _end(self, prefill: Prefill) -> None:
        """All layers of a prefill are done."""
        sequence = prefill.sequence
        sequence.seen = prefill.end
        try:
            self.prompts.keep(prefill)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or sequence.capture is None:
                raise
            sequence.capture.close()  # the answer goes on; the store does not get this prompt
            sequence.capture = None
        if prefill.compresses:
            # Reserved was the bound; what the layers did not take goes back, but for tokens still
            # to come.
            sequence.cache.trim(sequence.cache.kept_L + sequence.todo)
        if prefill.end >= sequence.num_prompt:
            if sequence.report is None:
                sequence.report = self._report(sequence)
            if sequence.request.positions and prefill.start < sequence.num_prompt:
                sequence.positions = self._positions(sequence)
            if sequence.look is not None:
                sequence.clock.compress_s += sequence.look.compress_s
            sequence.end_prefill()

    def _positions(self, sequence: SequenceState) -> KeptPositions:
        """What the device holds of the prompt; again after a preemption."""
        look, taken, dims = sequence.look, sequence.taken, self._adapter.dimensions
        shape = (len(sequence.cache.pages), dims.num_kv_heads, sequence.num_prompt)
        new = look.held if look else None  # of what was not taken over
        if taken is None:
            return positions(new, shape)
        before = Before(taken.num_tokens, taken.num_compressed, taken.parked.positions)
        return positions(new, shape, before)

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
            cached_tokens=sequence.num_known,
            elastic=sequence.asked if sequence.elastic else None,
        )


def _advance_decodes(batch: Batch) -> None:
    for sequence in batch.decodes:
        sequence.cache.kept_L += 1
        sequence.seen += 1


class _Step:
    """One forward pass as its layers see it (`attention_interface.StepContext`)."""

    def __init__(self, batch: Batch, pool: PagePool, backend: Backend, prompts: Prompts) -> None:
        self._batch = batch
        self._pool = pool
        self._attention = backend.attention
        self._contexts = [
            PromptContext(prefill, prompts, backend.attention) for prefill in batch.prefills
        ]
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
        for prefill, prompt in zip(self._batch.prefills, self._contexts, strict=True):
            end = start + prefill.end - prefill.start
            outs.append(prompt.attend(rows.part(start, end)))
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
