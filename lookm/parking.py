"""Conversations between two turns: their pages stay in the pool until somebody needs them.

    turn 1   [ prompt .......... | answer ]               parked when the answer ends
    turn 2   [ prompt .......... | answer | question ]    takes its rows over, computes the question

The rows of a full cache are those that the next turn would compute, so that taking them over is
exact. Those of a compressed one are what earlier turns kept of the conversation: a request says
`reuse="kept"` to go on from them. The least recently used goes first, and before anybody waits.
Knows tokens, pictures' digests and pages; knows no attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from lookm.cache import PagePool, SequenceCache
from lookm.sequence import SequenceState, TakenOver
from lookm.sizing import kept_rows
from lookm.types import CachePolicy, CacheReport, Request

#: A prompt's last tokens may be rendered otherwise in the next turn's: so many of them.
RENDERED_AGAIN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A conversation's rows. The first `num_compressed` of its tokens are no longer a row each."""

    cache: SequenceCache
    tokens: tuple[int, ...]
    images: tuple[tuple[str, int], ...]  # digest and tokens of each
    salt: str
    policy: CachePolicy
    num_prompt: int
    num_compressed: int
    report: CacheReport


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
        self.hit_tokens = 0
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def num_pages(self) -> int:
        return sum(parked.cache.num_pages for parked in self._parked)

    def owned(self) -> Iterator[list[int]]:
        """The pages of each layer of each."""
        for parked in self._parked:
            yield from parked.cache.pages

    def park(self, sequence: SequenceState) -> None:
        """Keep what an answered sequence holds, if another turn may go on from it."""
        request, report = sequence.request, sequence.report
        if not (self._enabled and sequence.causal and request.reuse != "none" and report):
            return
        compressed = sequence.num_prompt if sequence.compresses else 0
        if sequence.taken is not None:
            compressed = max(compressed, sequence.taken.num_compressed)
        cache = sequence.cache
        cache.trim(cache.kept_L)
        sequence.cache = SequenceCache(self._pool, len(cache.pages))
        self._parked.append(
            Parked(
                cache=cache,
                tokens=tuple(sequence.tokens[: sequence.seen]),
                images=tuple((image.digest, image.num_tokens) for image in request.images),
                salt=request.salt,
                policy=sequence.recipe.policy,
                num_prompt=sequence.num_prompt,
                num_compressed=compressed,
                report=report,
            )
        )

    def num_claimable(self, sequence: SequenceState) -> int:
        """How many of its prompt's tokens `claim` would take over."""
        found = self._find(sequence)
        return found[1] if found else 0

    def claim(self, sequence: SequenceState) -> None:
        """Give a sequence that holds nothing the rows of the conversation that it goes on from."""
        found = self._find(sequence) if sequence.cache.num_pages == 0 else None
        if found is None:
            return
        parked, num_tokens = found
        self._parked.remove(parked)
        parked.cache.drop(len(parked.tokens) - num_tokens)
        sequence.cache = parked.cache
        sequence.seen = num_tokens
        taken_L = parked.cache.kept_L.copy()
        new_L = sequence.bound_L - num_tokens
        if parked.num_compressed or sequence.compresses:
            ids = torch.tensor(sequence.request.prompt_ids[num_tokens:])
            is_image_T = ids == self._image_token_id
            # A question is not compressed; pictures are, by themselves, with what is said to them.
            new_L = np.full_like(taken_L, len(ids))
            if bool(is_image_T.any()):
                new_L = kept_rows(sequence.recipe, is_image_T, self._windows_L).bound_L
        sequence.taken = TakenOver(
            num_tokens=num_tokens,
            num_compressed=parked.num_compressed,
            rows_L=taken_L,
            bound_L=taken_L + new_L,
            report=parked.report,
            parked=replace(parked, tokens=parked.tokens[:num_tokens]),
        )

    def give_back(self, sequence: SequenceState) -> None:
        """Undo `claim`, for a sequence that cannot run yet."""
        if sequence.taken is not None:
            self._parked.append(sequence.taken.parked)
            sequence.cache = SequenceCache(self._pool, len(sequence.cache.pages))
            sequence.taken, sequence.seen = None, 0

    def make_room(self, num_pages: int) -> None:
        """Drop the least recently used until so many pages are free, or nobody is parked."""
        while self._parked and self._pool.num_free < num_pages:
            self._parked.pop(0).cache.release()
            self.num_dropped += 1

    def clear(self) -> None:
        """Drop everybody."""
        self.make_room(self._pool.num_pages + 1)

    def _find(self, sequence: SequenceState) -> tuple[Parked, int] | None:
        """Whom the sequence goes on from, and how many tokens are the same; the most of all."""
        best: tuple[Parked, int] | None = None
        if not (self._enabled and sequence.causal):
            return None
        for parked in reversed(self._parked):
            if not _allowed(parked, sequence):
                continue
            num_tokens = min(_num_same(parked, sequence.request, self._image_token_id),
                             sequence.num_prompt - 1)  # fmt: skip
            least = max(parked.num_compressed, parked.num_prompt - RENDERED_AGAIN, 1)
            if num_tokens >= least and (best is None or num_tokens > best[1]):
                best = parked, num_tokens
        return best


def _allowed(parked: Parked, sequence: SequenceState) -> bool:
    """Whether these rows are what the request wants to go on from."""
    request = sequence.request
    if request.reuse == "none" or parked.salt != request.salt:
        return False
    if request.reuse == "kept":
        return parked.policy == sequence.recipe.policy
    return not parked.num_compressed and not sequence.compresses


def _num_same(parked: Parked, request: Request, image_token_id: int) -> int:
    """With how many of the parked tokens the prompt begins, pictures compared by their digests."""
    length = min(len(parked.tokens), len(request.prompt_ids))
    ours, theirs = np.array(parked.tokens[:length]), np.array(request.prompt_ids[:length])
    different_N = np.flatnonzero(ours != theirs)
    same = int(different_N[0]) if len(different_N) else length
    image_N = np.flatnonzero(theirs[:same] == image_token_id)
    at = 0
    for (digest, num_tokens), image in zip(parked.images, request.images, strict=False):
        if at >= len(image_N):
            break
        if (digest, num_tokens) != (image.digest, image.num_tokens):
            return int(image_N[at])
        at += num_tokens
    return same
