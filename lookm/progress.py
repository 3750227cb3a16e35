"""What a step is at: which layer, since when, and how long that may take by what such pieces took.

A step of a large model on a small machine takes minutes; one of its layers does not take a hundred
times what it took before. Read by another thread. Knows sizes and the clock; no models, and no
torch: what it wraps are functions.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """`began_s` by `time.monotonic`, 0 between pieces; `expected_s` is inf where none is known."""

    began_s: float = 0.0
    expected_s: float = math.inf


class _Seen(NamedTuple):
    """Of one kind: rows of its largest piece, and seconds of its longest."""

    rows: int
    longest_s: float


class Progress:
    """The running piece (`piece`), and what pieces of its kind took."""

    def __init__(self) -> None:
        self.piece = Piece()
        self._seen: dict[str, _Seen] = {}

    @contextlib.contextmanager
    def doing(self, kind: str, rows: int) -> Iterator[None]:
        """The body is a piece of this kind. One that is left by an exception teaches nothing."""
        began_s = time.monotonic()
        self.piece = Piece(began_s, self.expected_s(kind, rows))
        try:
            yield
        finally:
            self.piece = Piece()
        self.learn(kind, rows, time.monotonic() - began_s)

    def marked(self, kind: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        """The same layer; each call is a piece, of as many rows as its first argument has."""

        @functools.wraps(layer)
        def run(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            with self.doing(kind, hidden.shape[:-1].numel()):
                return layer(hidden, *args, **kwargs)

        return run

    def expected_s(self, kind: str, rows: int) -> float:
        """At most: a layer's work grows at worst with the square of its rows (attention)."""
        seen = self._seen.get(kind)
        if seen is None:
            return math.inf
        return seen.longest_s * max(1.0, rows / seen.rows) ** 2

    def learn(self, kind: str, rows: int, took_s: float) -> None:
        """A piece has ended."""
        seen = self._seen.get(kind, _Seen(1, 0.0))
        self._seen[kind] = _Seen(max(rows, seen.rows), max(took_s, seen.longest_s))
