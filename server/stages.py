"""What a request spends its time on, told by those who have the clocks to whoever listens.

A listener (`listening`) hears of every stage of its own request, whichever task it happens in;
where nobody listens nothing is kept. Times are `time.perf_counter`'s. Knows nothing about traces.
"""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from lookm.types import Timing


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of a request's time. `choice` is which of its `n` answers; None: of all."""

    name: str
    began_s: float
    ended_s: float
    choice: int | None = None


_HEARD: ContextVar[list[Stage] | None] = ContextVar("stages", default=None)


@contextlib.contextmanager
def listening() -> Iterator[list[Stage]]:
    """The stages of what happens inside, as they end."""
    heard: list[Stage] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """What happens inside is one stage, also where it fails."""
    began_s = time.perf_counter()
    try:
        yield
    finally:
        _tell(Stage(name, began_s, time.perf_counter()))


def engine_stages(timing: Timing, choice: int) -> None:
    """The engine's clocks of an answer that has just ended: how long each stage took in all.

    They are laid end to end, the last one up to now: the engine looks while it prefills, and does
    other requests' steps between two of one's own. As `usage.timings`, a look counts once.
    """
    if _HEARD.get() is None:
        return
    look_s = min(timing.compress_s, timing.prefill_s)
    stages = (
        ("decode", timing.decode_s),
        ("look", look_s),
        ("prefill", timing.prefill_s - look_s),
        ("vision", timing.encode_s),
        ("queue", timing.queue_s),
    )
    ended_s = time.perf_counter()
    for name, seconds in stages:
        if seconds or name not in ("look", "vision"):
            _tell(Stage(name, ended_s - seconds, ended_s, choice))
        ended_s -= seconds


def _tell(ended: Stage) -> None:
    if (heard := _HEARD.get()) is not None:
        heard.append(ended)
