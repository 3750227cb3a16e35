"""Conversations between two turns: their pages stay in the pool until somebody needs them.

    turn 1   [ prompt .......... | answer ]               parked when the answer ends
    turn 2   [ prompt .......... | answer | question ]    takes its rows over, computes the question

The rows of a full cache are those that the next turn would compute, so that taking them over is
exact. Those of a compressed one are what earlier turns kept of the conversation: a request says
`reuse="kept"` to go on from them, and is given a copy where there is room, as others may go on from
them too. The least recently used goes first, and before anybody waits.
Knows tokens, pictures' digests and pages; knows no attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from lookm.cache import PagePool, SequenceCache
from lookm.cache.table import Int32, Int64
from lookm.kept import KeptPositions
from lookm.policy import recent_rows
from lookm.sequence import SequenceState, TakenOver
from lookm.sizing import kept_rows
from lookm.types import CachePolicy, CacheReport, Request

#: A prompt's last tokens may be rendered otherwise in the next turn's: so many of them.
RENDERED_AGAIN = 8
#: A question of so many tokens is kept whole; a longer turn is compressed, by itself.
KEPT_WHOLE = 128
LONG_ANSWER = 512


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A conversation's rows. The first `num_compressed` of its tokens are no longer a row each."""

    cache: SequenceCache
    ids_N: Int32
    images: tuple[tuple[str, int], ...]  # digest and tokens of each
    salt: str
    policy: CachePolicy
    num_prompt: int
    num_compressed: int
    report: CacheReport
    positions: KeptPositions | None  # of its prompt, where it asked for them


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A conversation that a sequence may go on from, after `num_tokens` of its prompt."""

    parked: Parked
    num_tokens: int
    rows_L: Int64
    bound_L: Int64


class Parking:
    """Parks sequences that end and gives their rows to those that go on."""

    def __init__(
        self,
        pool: PagePool,
        image_token_id: int,
        windows_L: tuple[int | None, ...],
        *,
        enabled: bool = True,
    ) -> None:
        self._pool = pool
        self._image_token_id = image_token_id
        self._windows_L = windows_L
        self._enabled = enabled
        self._parked: list[Parked] = []  # the least recently used first
        self.num_pages = 0
        self.hit_tokens = 0
        self.num_dropped = 0
        self._num_changes = 0

    def __len__(self) -> int:
        return len(self._parked)

    def owned(self) -> Iterator[list[int]]:
        """The pages of each layer of each."""
        for parked in self._parked:
            yield from parked.cache.pages

    def park(self, sequence: SequenceState) -> None:
        """Keep what an answered sequence holds, if another turn may go on from it."""
        request, report = sequence.request, sequence.report
        if not (self._enabled and sequence.reuses and request.reuse != "none" and report):
            return
        compressed = self._num_compressed(sequence) if sequence.compresses else 0
        if sequence.taken is not None:
            compressed = max(compressed, sequence.taken.num_compressed)
        cache = sequence.cache
        cache.trim(cache.kept_L)
        sequence.cache, sequence.taken = SequenceCache(self._pool, len(cache.pages)), None
        self._add(
            Parked(
                cache=cache,
                ids_N=np.array(sequence.tokens[: sequence.seen], dtype=np.int32),
                images=tuple((image.digest, image.num_tokens) for image in request.images),
                salt=request.salt,
                policy=sequence.asked,
                num_prompt=sequence.num_prompt,
                num_compressed=compressed,
                report=report,
                positions=sequence.positions,
            )
        )

    def offer(self, sequence: SequenceState) -> Offer | None:
        """What the sequence may go on from, if that fits the pool at all; the most of all."""
        if not self._enabled or not sequence.reuses or sequence.searched == self._num_changes:
            return None
        best: Offer | None = None
        ids_N = np.array(sequence.request.prompt_ids, dtype=np.int32)
        for parked in reversed(self._parked):
            if not _allowed(parked, sequence):
                continue
            least = max(parked.num_compressed, parked.num_prompt - RENDERED_AGAIN, 1)
            least = max(least, sequence.num_together)
            most = min(_num_same(parked, ids_N, least, sequence.request, self._image_token_id),
                       sequence.num_prompt - 1)  # fmt: skip
            if most >= least and (best is None or most > best.num_tokens):
                best = self._offered(parked, most, sequence)
        if best is None or not self._can_hold(best, sequence):
            sequence.searched = self._num_changes  # not again before another is parked
            return None
        return best

    def missing_pages(self, offer: Offer, sequence: SequenceState) -> int:
        """Pages that must be free or parked, besides the offered ones, for it to be claimed."""
        held_L = _pages(offer.rows_L, self._pool)
        spare = offer.parked.cache.num_pages - int(held_L.sum())
        wanted_L = _pages(offer.bound_L + sequence.num_generated, self._pool)
        return int(np.maximum(wanted_L - held_L, 0).sum()) - spare

    def claim(self, sequence: SequenceState, offer: Offer) -> None:
        """Give a sequence that holds nothing the rows of the conversation that it goes on from."""
        parked = offer.parked
        self._remove(parked)
        if parked.num_compressed and self._copied(sequence, offer):
            self._add(parked)
        else:
            sequence.cache = parked.cache
            sequence.cache.cut(offer.rows_L)
        sequence.seen = offer.num_tokens
        sequence.taken = TakenOver(
            num_tokens=offer.num_tokens,
            num_compressed=parked.num_compressed,
            rows_L=offer.rows_L,
            bound_L=offer.bound_L,
            report=parked.report,
            parked=parked,
        )
        self.hit_tokens += offer.num_tokens

    def give_back(self, sequence: SequenceState) -> None:
        """Park again what a sequence took over, when it ends or is preempted before its answer."""
        taken = sequence.taken
        if taken is None:
            return
        parked: Parked = taken.parked
        if parked not in self._parked and sequence.cache is parked.cache:
            sequence.cache = SequenceCache(self._pool, len(parked.cache.pages))
            parked.cache.cut(taken.rows_L)
            self._add(replace(parked, ids_N=parked.ids_N[: taken.num_tokens]))
        sequence.taken, sequence.report, sequence.positions, sequence.seen = None, None, None, 0

    def make_room(self, num_pages: int) -> None:
        """Drop the least recently used until so many pages are free, or nobody is parked."""
        while self._parked and self._pool.num_free < num_pages:
            parked = self._parked[0]
            self._remove(parked)
            parked.cache.release()
            self.num_dropped += 1

    def clear(self) -> None:
        """Drop everybody."""
        self.make_room(self._pool.num_pages + 1)

    def _num_compressed(self, sequence: SequenceState) -> int:
        """Up to where its prompt's tokens are no longer a row each."""
        ids = torch.tensor(sequence.request.prompt_ids[sequence.num_taken :])
        recent = recent_rows(sequence.recipe, ids == self._image_token_id)
        return sequence.num_prompt - min(RENDERED_AGAIN, recent)

    def _add(self, parked: Parked) -> None:
        self._parked.append(parked)
        self.num_pages += parked.cache.num_pages
        self._num_changes += 1

    def _remove(self, parked: Parked) -> None:
        self._parked.remove(parked)
        self.num_pages -= parked.cache.num_pages

    def _copied(self, sequence: SequenceState, offer: Offer) -> bool:
        """Copy the rows to pages of the sequence's own, where so many are free: nobody else's
        conversation is dropped for a copy."""
        cache = sequence.cache
        needed = cache.missing_pages(offer.bound_L + sequence.num_generated)
        if self._pool.num_free < needed:
            return False
        cache.copy(offer.parked.cache, offer.rows_L)
        return True

    def _offered(self, parked: Parked, num_tokens: int, sequence: SequenceState) -> Offer:
        rows_L: Int64 = parked.cache.kept_L - (len(parked.ids_N) - num_tokens)
        new_L = sequence.bound_L - num_tokens
        if parked.num_compressed or sequence.compresses:
            ids = torch.tensor(sequence.request.prompt_ids[num_tokens:])
            is_image_T = ids == self._image_token_id
            new_L = np.full_like(rows_L, len(ids))
            if len(ids) > KEPT_WHOLE or bool(is_image_T.any()):
                new_L = kept_rows(sequence.recipe, is_image_T, self._windows_L).bound_L
        return Offer(parked, num_tokens, rows_L, rows_L + new_L)

    def _can_hold(self, offer: Offer, sequence: SequenceState) -> bool:
        """Whether the pool could hold it, if it were alone, with an answer of some length."""
        answer = max(sequence.num_generated, min(sequence.request.sampling.max_tokens, LONG_ANSWER))
        rows_L = offer.bound_L + answer
        return int(_pages(rows_L, self._pool).sum()) <= self._pool.num_pages


def _pages(rows_L: Int64, pool: PagePool) -> Int64:
    return -(-rows_L // pool.page_tokens)


def _allowed(parked: Parked, sequence: SequenceState) -> bool:
    """Whether these rows are what the request wants to go on from."""
    request = sequence.request
    if request.reuse == "none" or parked.salt != request.salt:
        return False
    if request.reuse == "kept":
        return parked.policy == sequence.asked
    return not parked.num_compressed and not sequence.compresses


def _num_same(
    parked: Parked, ids_N: Int32, least: int, request: Request, image_token_id: int
) -> int:
    """With how many of the parked tokens the prompt begins, pictures compared by their digests.

    0 where they are fewer than `least`.
    """
    if not np.array_equal(parked.ids_N[:least], ids_N[:least]):
        return 0
    length = min(len(parked.ids_N), len(ids_N))
    different_N = np.flatnonzero(parked.ids_N[:length] != ids_N[:length])
    same = int(different_N[0]) if len(different_N) else length
    image_N = np.flatnonzero(ids_N[:same] == image_token_id)
    at = 0
    for (digest, num_tokens), image in zip(parked.images, request.images, strict=False):
        if at >= len(image_N) or (digest, num_tokens) != (image.digest, image.num_tokens):
            break
        at += num_tokens
    # What looks like a picture behind the last common one is none, or another.
    return int(image_N[at]) if at < len(image_N) else same
