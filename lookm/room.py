"""How much room there is for one that starts: which level an elastic request takes.

It takes the highest at which nobody waits for it. All who wait for a place, and who are known to be
on their way, are taken to start at the same level as well, beside the answers that are being
written: so a burst shares evenly what is free, and one alone takes its most. Where that is too much
at every level it takes the least. Knows sequences, pages and places; starts nobody.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from lookm.cache.table import Int64
from lookm.elastic import highest
from lookm.sequence import SequenceState

EXPECTED_ANSWER = 256  # tokens that an answer is thought to have, if it may
GROUPS = 1024  # that are remembered: choices of a request may start one after the other


class Room:
    """Chooses levels, and remembers what requests of several choices have taken."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._groups: OrderedDict[str, int] = OrderedDict()

    def level(
        self,
        sequence: SequenceState,
        running: list[SequenceState],
        waiting: Iterable[SequenceState],
        num_pages: int,
    ) -> int:
        """The level of an elastic sequence that starts now, where `num_pages` can be had."""
        elastic, request = sequence.elastic, sequence.request
        assert elastic is not None, "the others have no choice"
        places = self._max_running - len(running) - 1
        others = list(islice((each for each in waiting if each is not sequence), places))
        alike = 1 + min(request.num_coming, places - len(others))
        num_pages -= sum(map(_growth, running))

        def room_for_all(level: int) -> bool:
            needed = alike * _pages(sequence, level)
            return needed + sum(_pages(each, level) for each in others) <= num_pages

        return highest(room_for_all, elastic.most)

    def settle(self, sequence: SequenceState, waiting: Iterable[SequenceState]) -> None:
        """It has taken its level, for good; the other choices of its request take the same."""
        assert sequence.elastic is not None
        sequence.elastic.settled = True
        if not (group := sequence.request.group):
            return
        self._groups[group] = sequence.elastic.level
        self._groups.move_to_end(group)
        if len(self._groups) > GROUPS:
            self._groups.popitem(last=False)
        for each in waiting:
            self.join(each)

    def join(self, sequence: SequenceState) -> None:
        """Take what another choice of its request has taken, if one has."""
        level = self._groups.get(sequence.request.group)
        if level is not None and sequence.undecided:
            assert sequence.elastic is not None
            sequence.take(level)
            sequence.elastic.settled = True


def _pages(sequence: SequenceState, level: int) -> int:
    """Pages that one who waits would have when answered."""
    rows_L: Int64 = sequence.max_rows_L
    if sequence.undecided:
        assert sequence.elastic is not None
        rows_L = sequence.elastic.rows(level)
    return sequence.cache.missing_pages(rows_L + _answer(sequence))


def _growth(sequence: SequenceState) -> int:
    """Pages that a running one still takes until it is answered."""
    rows_L, left = sequence.max_rows_L, _answer(sequence)
    if sequence.decoding:
        rows_L, left = sequence.cache.kept_L, left - sequence.num_generated
    return sequence.cache.missing_pages(rows_L + left)


def _answer(sequence: SequenceState) -> int:
    """Tokens of its answer, as far as can be known."""
    most = sequence.request.sampling.max_tokens
    return min(most, max(EXPECTED_ANSWER, sequence.num_generated + 1))
