"""Who runs in this step: decodes first, then prefills, first come first served, by pages.

A request is admitted when the pages its policy's bound asks for are free: at 20 % kept, a fifth of
the pages of a full cache. An elastic one takes what leaves room for the others (`room`). Decoding
takes pages one by one; when none is left, the newest request gives its own back and is computed
again later (its tokens stay, so its answer does not change). What has a free place and free pages
does not count as waiting, though only the next step starts it.
Knows nothing about tensors.
"""

from bisect import insort_left, insort_right
from collections import deque
from collections.abc import Iterable
from itertools import chain

from lookm.batch import Batch, Encode, Prefill
from lookm.cache import PagePool
from lookm.cache.table import Int64
from lookm.config import EngineConfig
from lookm.errors import QueueFullError
from lookm.pace import Pace
from lookm.parking import Offer, Parking
from lookm.room import Room
from lookm.sequence import PARTS, SequenceState
from lookm.store import BLOCK_TOKENS, OF_WINDOWS, PromptStore


class Scheduler:
    """The waiting queue and the running list. `running` is in order of admission."""

    def __init__(
        self,
        pool: PagePool,
        store: PromptStore,
        parking: Parking,
        pace: Pace,
        config: EngineConfig,
    ) -> None:
        self._pool = pool
        self._store = store
        self._parking = parking
        self._max_running = config.max_running
        self._max_waiting = config.max_waiting
        self._pace = pace
        self._room = Room(config.max_running)
        self._num_steps = 0
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.num_preemptions = 0

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence. Raises `QueueFullError` where too many would have to wait.

        The queue is first come, first served within a priority. Those at its front that could run
        at once, by `max_running` and by free pages, do not count.
        """
        self._room.join(sequence)
        num_queued = len(self.waiting) + 1
        if num_queued > self._max_waiting and (
            num_queued - self._num_startable(sequence) > self._max_waiting
        ):
            raise QueueFullError(
                f"{self._max_waiting} requests are waiting, the most this server queues; "
                "try again later"
            )
        insort_right(self.waiting, sequence, key=_priority)

    def remove(self, sequence: SequenceState, *, park: bool = False) -> None:
        """Forget a sequence, finished or aborted, and free its pages: at once, or when needed."""
        if park or sequence.decoding:  # the next turn may begin with what was answered so far
            self._parking.park(sequence)
        self._parking.give_back(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.cache.release()
        sequence.end_prefill()

    def schedule(self) -> Batch:
        """The next step's work. Every page it writes to is reserved on return."""
        batch = Batch(self._grow_decodes())
        self._num_steps += 1
        budget = min(self._pace.step_tokens, self._pace.max_step_tokens - len(batch.decodes))
        # Those already running first: a prompt in chunks, or one that was preempted.
        for sequence in self.running:
            if not sequence.decoding and not self._is_long(sequence):
                budget = self._prefill(sequence, budget, batch)
        for sequence in list(self.waiting):
            if len(self.running) >= self._max_running or budget <= 0:
                break
            if sequence.awaits_mask:
                continue
            offer = self._parking.offer(sequence)
            if offer is None and self._is_computed_for(sequence):
                continue
            if not self._fits(sequence, offer) or self._too_long_for_now(sequence, budget, batch):
                break
            if sequence.undecided:
                offer = self._take_level(sequence)
            if offer is not None:
                self._parking.claim(sequence, offer)
            self.waiting.remove(sequence)
            self.running.append(sequence)
            # All of its prompt's pages now, so that a prefill never runs dry in the middle.
            self._reserve(sequence, sequence.rows_when_caught_up())
            sequence.clock.start()
            if not self._is_long(sequence):
                budget = self._prefill(sequence, budget, batch)
        self._choose_long(batch)
        return batch

    def check(self) -> None:
        """Assert the invariants between steps: pages owned once, waiting requests hold none."""
        everyone = [*self.waiting, *self.running]
        owned = [pages for seq in everyone for pages in seq.cache.pages]
        parked = list(self._parking.owned())
        self._pool.check([*owned, *parked])
        assert self._parking.num_pages == sum(map(len, parked)), "parked pages are miscounted"
        self._store.check()
        for sequence in everyone:
            held = [len(pages) * self._pool.page_tokens for pages in sequence.cache.pages]
            bounds = sequence.max_rows_L + sequence.num_generated
            for kept, rows, bound in zip(sequence.cache.kept_L, held, bounds, strict=True):
                assert kept <= rows, "more rows than pages"
                assert kept <= bound, "more rows than the bound"
        assert not any(sequence.cache.num_pages for sequence in self.waiting)

    def _grow_decodes(self) -> list[SequenceState]:
        """Reserve each decoding sequence's next row, oldest first, preempting the newest."""
        decodes: list[SequenceState] = []
        for sequence in list(self.running):
            if sequence not in self.running or not sequence.decoding or sequence.awaits_mask:
                continue
            rows_L = sequence.cache.kept_L + 1
            # The newest goes first: it has the least to lose, and the oldest always gets on. That
            # may be this very sequence, which then waits.
            while sequence in self.running and self._short_of(sequence, rows_L):
                # Of the least important: `max` takes the first of equals, so from the newest on.
                victim = max(reversed(self.running), key=_priority)
                self._preempt(victim)
                if victim in decodes:  # an older one, but less important
                    decodes.remove(victim)
            if sequence in self.running:
                self._reserve(sequence, rows_L)
                decodes.append(sequence)
        return decodes

    @property
    def _num_available(self) -> int:
        """Pages that are free, or parked."""
        return self._pool.num_free + self._parking.num_pages

    def _short_of(self, sequence: SequenceState, rows_L: Int64) -> bool:
        return self._num_available < sequence.cache.missing_pages(rows_L)

    def _reserve(self, sequence: SequenceState, rows_L: Int64) -> None:
        """Pages for `rows_L`, those of parked conversations where no other is free."""
        self._parking.make_room(sequence.cache.missing_pages(rows_L))
        sequence.cache.reserve(rows_L)

    def begin_again(self, sequence: SequenceState) -> None:
        """Put a running sequence back to waiting; all that was computed for it is forgotten."""
        self.running.remove(sequence)
        self._parking.give_back(sequence)
        sequence.rewind()
        insort_left(self.waiting, sequence, key=_priority)

    def _preempt(self, sequence: SequenceState) -> None:
        self.begin_again(sequence)
        self.num_preemptions += 1

    def _is_computed_for(self, sequence: SequenceState) -> bool:
        """Whether another is computing most of what it would compute itself: then it waits for it.

        Not for one that is less important, and not where all of it fits a piece of a step anyway: a
        short question with the same system text does not wait for somebody's images. Those behind
        it do not wait: they have other prompts.
        """
        needs = sequence.recipe.preset.needs
        if sequence.compresses and not needs.additive:
            return False  # it will be computed afresh
        known = self._store.num_known(sequence.keys)
        rest = sequence.num_prompt - known * BLOCK_TOKENS
        if rest <= self._longest:
            return False
        return any(
            other.prefilling
            and _priority(other) <= _priority(sequence)
            and _stores_sums(other, sequence)
            and 2 * BLOCK_TOKENS * _num_common(other, sequence, known) >= rest
            for other in self.running
        )

    def _fits(self, sequence: SequenceState, offer: Offer | None) -> bool:
        """Whether the pool holds the sequence, and a next page per layer for everyone running."""
        available, layers = self._num_available, len(sequence.cache.pages)
        if offer is None:
            need = sequence.cache.missing_pages(sequence.rows_when_caught_up())
        else:
            need = self._parking.missing_pages(offer, sequence)
            available -= offer.parked.cache.num_pages
        return available >= need + layers * _count_decoding(self.running)

    def _take_level(self, sequence: SequenceState) -> Offer | None:
        """Decide what an elastic sequence keeps, which fits at its least; what it goes on from."""
        level = self._room.level(sequence, self.running, self.waiting, self._num_available)
        sequence.take(level)
        offer = self._parking.offer(sequence)
        while level and not self._fits(sequence, offer):
            level -= 1
            sequence.take(level)
            offer = self._parking.offer(sequence)
        self._room.settle(sequence, self.waiting)
        return offer

    def _num_startable(self, newest: SequenceState) -> int:
        """How many at the front of the queue, `newest` at its end, have a place and pages now.

        As `schedule` counts: after the next rows of those that decode, each by `_fits`. A step's
        token budget is left out: it decides in which of the next steps a prompt is prefilled, not
        whether it must wait for another to end.
        """
        num_places = self._max_running - len(self.running)
        num_free = self._num_available
        for sequence in filter(lambda each: each.decoding, self.running):
            num_free -= sequence.cache.missing_pages(sequence.cache.kept_L + 1)
            num_free -= len(sequence.cache.pages)
        for started, sequence in enumerate(chain(self.waiting, (newest,))):
            num_free -= sequence.cache.missing_pages(sequence.rows_when_caught_up())
            if started == num_places or num_free < 0:
                return started
        return len(self.waiting) + 1

    def _too_long_for_now(self, sequence: SequenceState, budget: int, batch: Batch) -> bool:
        """A prompt longer than what is left of the budget waits to be a step's first prefill.

        Then it is cut only where it is longer than a step, and past the budget only where it is
        indivisible.
        """
        if self._is_long(sequence):
            return False
        return len(sequence.tokens) > budget and bool(batch.prefills)

    def _is_long(self, sequence: SequenceState) -> bool:
        """Whether its prefill is run in tiles. What sees later tokens cannot be."""
        if sequence.job is not None:  # what the store knew may have left little of it
            return True
        num_tokens = len(sequence.tokens) - sequence.seen
        longest = self._longest // PARTS if sequence.alone else self._longest
        return sequence.causal and bool(self._pace.tile_tokens) and num_tokens > longest

    @property
    def _longest(self) -> int:
        """Tokens of the longest prompt that runs in one piece."""
        return min(self._pace.step_tokens, self._pace.tile_tokens)

    def _choose_long(self, batch: Batch) -> None:
        """Which of those that run in tiles gets on, and who has an image encoded.

        By priority; of one priority the oldest. But every other step is for one of at most a tile,
        if there is one: it is done soon, and the others lose at most half of their time to such.
        """
        long = [seq for seq in self.running if not seq.decoding and self._is_long(seq)]
        long.sort(key=_priority)
        for sequence in long:
            _offer_images(sequence, batch)
        ready = [seq for seq in long if not seq.awaits_images] or long
        if self._num_steps % 2:
            tile = self._pace.tile_tokens
            ready.sort(key=lambda seq: (_priority(seq), len(seq.tokens) - seq.seen > tile))
        for sequence in ready[:1]:
            end = sequence.num_prompt if sequence.indivisible else len(sequence.tokens)
            batch.long.append(Prefill(sequence, sequence.seen, end))

    def _prefill(self, sequence: SequenceState, budget: int, batch: Batch) -> int:
        """Hand out the sequence's next units of work; return what is left of the token budget."""
        start, total = sequence.seen, len(sequence.tokens)
        end = sequence.num_prompt if sequence.indivisible else min(total, start + budget)
        if end <= start:
            return budget
        _offer_images(sequence, batch)
        batch.prefills.append(Prefill(sequence, start, end))
        return budget - (end - start)


def _offer_images(sequence: SequenceState, batch: Batch) -> None:
    """Hand out the images that its prompt waits for, if any."""
    if sequence.awaits_images:
        num_encoded = len(sequence.features)
        batch.encodes.append(Encode(sequence, num_encoded, len(sequence.request.images)))


def _priority(sequence: SequenceState) -> int:
    """The lowest comes first."""
    return sequence.request.priority


def _count_decoding(sequences: Iterable[SequenceState]) -> int:
    return sum(sequence.decoding for sequence in sequences)


def _stores_sums(other: SequenceState, sequence: SequenceState) -> bool:
    """Whether what `other` leaves in the store has the sums that the sequence is scored by."""
    if not sequence.compresses:
        return True
    left = other.recipe.preset.needs.stored if other.compresses else frozenset()
    return sequence.recipe.preset.needs.stored - OF_WINDOWS <= left


def _num_common(other: SequenceState, sequence: SequenceState, known: int) -> int:
    """How many blocks from `known` on both have, and will be in the store when `other` is done."""
    held = len(other.keys) if other.capture is None else other.capture.num_blocks
    last = min(held, len(sequence.keys))
    for n in range(known, last):  # keys are chained: the first that differs is the end
        if other.keys[n] != sequence.keys[n]:
            return n - known
    return max(0, last - known)
