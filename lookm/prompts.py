"""A prompt's beginning and end: what the store knows of it, the look at it, what it leaves behind.

Where store, policy, pages and model meet for a prompt: how much of it may be taken over is decided
here, from what its recipe needs. Sums add up over rows, so the known rows' are added; a window's
queries are computed again; what needs every query is computed afresh. Knows nothing about steps.
"""

import time

import torch

from lookm.attention import Backend
from lookm.batch import Prefill
from lookm.held import HeldTokens
from lookm.look import PromptLook, Seen
from lookm.models.adapter import Adapter
from lookm.policy import PromptPolicy
from lookm.sequence import SequenceState, TakenOver
from lookm.store import BLOCK_TOKENS, OF_WINDOWS, Capture, Prefix, PromptStore, block_keys
from lookm.types import Needs


class Prompts:
    """Opens prompts and closes them, beside a `PromptStore`. Counts what it saves."""

    def __init__(self, store: PromptStore, adapter: Adapter, backend: Backend) -> None:
        self.store = store
        self._adapter = adapter
        self._backend = backend
        self.query_tokens = self.hit_tokens = 0
        self.load_s = self.save_s = 0.0

    def keys(self, sequence: SequenceState) -> list[bytes]:
        """The names of a prompt's blocks; none where nothing is stored, or to be taken over."""
        request, image_id = sequence.request, self._adapter.image_token_id
        if not (self.store.enabled and sequence.reuses and request.reuse != "none"):
            return []
        return block_keys(request.prompt_ids, request.images, image_id, request.salt)

    def open(self, sequence: SequenceState) -> None:
        """Look for its beginning in the store, once for each time that it begins."""
        if sequence.compresses and sequence.look is None:
            sequence.look = self._look(sequence)
        if sequence.capture is not None or not sequence.keys:
            return
        if sequence.taken is not None:
            self._open_after_rows(sequence, sequence.taken)
            return
        self.query_tokens += sequence.num_prompt
        needs = sequence.look.policy.needs if sequence.look else None
        prefix = self._find(sequence, needs)
        if prefix is not None and prefix.num_tokens < sequence.num_together:
            prefix.release()
            prefix = None
        sequence.prefix = prefix
        start = sequence.prefix.num_tokens if sequence.prefix else 0
        self.hit_tokens += start
        num_layers = self._adapter.dimensions.num_layers
        sequence.capture = Capture(self.store, sequence.keys, start, num_layers)

    def _find(self, sequence: SequenceState, needs: Needs | None) -> Prefix | None:
        """The longest beginning that is known well enough.

        The rows of a window are computed again: it ends before them. But one that begins after the
        images is known as far as its sums were kept.
        """
        most = sequence.num_prompt - 1  # the last token's logits are the first answer's
        if needs is None:
            return self.store.find(sequence.keys, most)
        if not needs.additive:
            return None
        first = sequence.num_prompt - max(1, needs.window)  # of the window
        if needs.after_images:
            prefix = self.store.find(sequence.keys, most, needs.stored)
            if prefix is not None and prefix.num_tokens > first:
                return prefix
            if prefix is not None:
                prefix.release()
        return self.store.find(sequence.keys, first, needs.stored - OF_WINDOWS)

    def _open_after_rows(self, sequence: SequenceState, taken: TakenOver) -> None:
        """What it has is in pages. Of a full cache the store may still lack some; rows that pages
        round are not what it keeps."""
        if taken.num_compressed or sequence.compresses or sequence.cache.rounds:
            return
        known = min(self.store.num_known(sequence.keys), taken.num_tokens // BLOCK_TOKENS)
        num_layers = self._adapter.dimensions.num_layers
        start = known * BLOCK_TOKENS
        sequence.capture = Capture(self.store, sequence.keys, start, num_layers)

    def _look(self, sequence: SequenceState) -> PromptLook:
        # Opened from a tensor on the host: on the device every count would wait for it.
        adapter = self._adapter
        ids = sequence.request.prompt_ids[sequence.num_taken :]
        is_image_T = torch.tensor(ids) == adapter.image_token_id
        windows_L = adapter.dimensions.windows_L
        return PromptLook(
            PromptPolicy(sequence.recipe, is_image_T, windows_L.count(None), device=adapter.device),
            is_image_T.to(adapter.device),
            num_layers=len(windows_L),
            backend=self._backend,
            held=HeldTokens(len(ids)) if sequence.request.positions else None,
        )

    def num_known_images(self, sequence: SequenceState) -> int:
        """How many of its first images lie in the known beginning as a whole."""
        ids = sequence.request.prompt_ids[: sequence.num_known]
        left, known = ids.count(self._adapter.image_token_id), 0
        for image in sequence.request.images:
            left -= image.num_tokens
            if left < 0:
                break
            known += 1
        return known

    def resume(self, prefill: Prefill) -> Prefill:
        """The prefill without the known rows."""
        sequence, prefix = prefill.sequence, prefill.sequence.prefix
        if prefix is None or prefill.start >= prefix.num_tokens:
            return prefill
        sequence.seen = prefix.num_tokens
        return Prefill(sequence, prefix.num_tokens, prefill.end)

    def follows(self, prefill: Prefill) -> bool:
        """Whether the rows before it are the store's: later ones are in pages."""
        prefix = prefill.sequence.prefix
        return prefix is not None and prefill.start == prefix.num_tokens

    def load(self, prefill: Prefill, layer: int, more: int) -> torch.Tensor:
        """K and V of the known rows, `[2, n + more, K, D]`, with room for `more` behind them."""
        prefix = prefill.sequence.prefix
        assert prefix is not None
        assert self.follows(prefill), "what follows a prefix at once"
        started_s = time.monotonic()
        rows_2SKD = prefix.load(layer, more)
        self.load_s += time.monotonic() - started_s
        return rows_2SKD

    def seen(self, sequence: SequenceState, look: PromptLook) -> Seen:
        """The known rows' sums in the next layer that is compressed."""
        snapshot = sequence.prefix.snapshot if sequence.prefix else None
        parts = {} if snapshot is None else snapshot.parts
        return {name: part[look.num_seen] for name, part in parts.items()}

    def cuts(self, prefill: Prefill) -> list[int]:
        """Where sums are taken: at the last blocks' ends, and at the last image's.

        The next turn of a conversation begins with this prompt, but for its last tokens; another
        question about the same images begins with these.
        """
        sequence, look = prefill.sequence, prefill.sequence.look
        if sequence.capture is None or look is None or not look.policy.needs.stored:
            return []
        num_tokens, ids = sequence.num_prompt, sequence.request.prompt_ids
        last_block = (num_tokens - 1) // BLOCK_TOKENS
        ends = {last_block, last_block - 1}
        if sequence.request.images:
            last_image = num_tokens - ids[::-1].index(self._adapter.image_token_id)
            ends.add(last_image // BLOCK_TOKENS)
        start, needs = prefill.start, look.policy.needs
        if needs.stored <= OF_WINDOWS:  # before the window there is nothing to be taken
            start = max(start, num_tokens - needs.window)
        return sorted(
            end * BLOCK_TOKENS for end in ends if start < end * BLOCK_TOKENS < prefill.end
        )

    def snapshot(self, sequence: SequenceState, num_tokens: int, found: Seen) -> None:
        """Keep the sums over the first `num_tokens` rows of a layer."""
        if sequence.capture is None or sequence.look is None:
            return
        names = sequence.look.policy.needs.stored
        parts = {name: part for name, part in found.items() if name in names}
        if parts:  # before its window there is nothing of it
            sequence.capture.snapshot(num_tokens, parts)

    def capture(
        self,
        sequence: SequenceState,
        layer: int,
        start: int,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
    ) -> None:
        """Copy a layer's raw rows, of the tokens from `start` on, towards the store."""
        if sequence.capture is not None and sequence.prefilling:
            started_s = time.monotonic()
            sequence.capture.write(layer, start, k_KTD, v_KTD)
            self.save_s += time.monotonic() - started_s

    def keep(self, prefill: Prefill) -> None:
        """All layers have run: let others find what is complete."""
        if prefill.sequence.capture is not None:
            prefill.sequence.capture.commit(prefill.end)
