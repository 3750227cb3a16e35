"""Digits are bounded, as white space is: a model under a mask may otherwise write digits until it
runs out of tokens, and what it wrote is no JSON.

After `MAX_DIGITS` digits in a row something else must come, where the grammar allows it; where it
does not (`0.000` is not above 0), a digit that is not 0. In strings the bound is longer. Works on
the answer's bytes, so that it holds for every number, whatever the schema says or leaves open.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lookm.grammar.source import pieces_of
from lookm.types import Structure

MAX_DIGITS = 32
MAX_DIGITS_IN_STRING = 256

ZERO, NINE, QUOTE, BACKSLASH = b'09"\\'

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class DigitClasses:
    """Which tokens begin with a digit, and which of those with 0."""

    digit_V: Bools
    zero_V: Bools

    @classmethod
    def of(cls, tokens: Iterable[bytes]) -> Self:
        """Of a vocabulary's tokens."""
        first_V = np.array([token[0] if token else 0 for token in tokens], dtype=np.uint8)
        return cls((first_V >= ZERO) & (first_V <= NINE), first_V == ZERO)

    def bounded(self, allowed: Bools) -> Bools:
        """What of the allowed tokens may follow many digits: never nothing."""
        for banned_V in (self.digit_V, self.zero_V):
            left = allowed.copy()
            left[: banned_V.size] &= ~banned_V[: left.size]
            if left.any():
                return left
        return allowed


class DigitRun:
    """How many digits an answer ends in. Counts from where its JSON begins."""

    def __init__(self, marker: bytes = b"", *, bare: bool = False) -> None:
        """`marker`: text stands before the JSON, up to here. `bare`: JSON, or text without any."""
        self._marker = marker
        self._bare = bare
        self._before = b""
        self._length = 0
        self._in_string = self._escaped = self._is_text = False

    @classmethod
    def of(cls, structure: Structure) -> "Self | None":
        """Of an answer with this structure; None where it has no JSON."""
        if structure.kind == "regex":
            return None
        if structure.kind == "json_pieces" and (pieces := pieces_of(structure)).optional:
            return cls(pieces.opened[0].encode(), bare=not pieces.opened[0])
        return cls()

    @property
    def is_long(self) -> bool:
        """Whether another digit would be too many."""
        most = MAX_DIGITS_IN_STRING if self._in_string else MAX_DIGITS
        return not self._is_text and self._length >= most

    def push(self, text: bytes) -> None:
        """Note what comes next in the answer."""
        if self._marker:  # still in the text before the JSON
            self._before = (self._before + text)[-2 * len(self._marker) - len(text) :]
            found = self._before.find(self._marker)
            if found < 0:
                return
            text, self._marker = self._before[found + len(self._marker) :], b""
        if self._bare and (begun := text.lstrip()):
            self._bare, self._is_text = False, not begun.startswith(b"{")
        for byte in text:
            self._push(byte)

    def _push(self, byte: int) -> None:
        self._length = self._length + 1 if ZERO <= byte <= NINE else 0
        if self._escaped:
            self._escaped = False
        elif byte == BACKSLASH:
            self._escaped = self._in_string
        elif byte == QUOTE:
            self._in_string = not self._in_string
