"""Whether a worker hangs: it is silent, or a step does not end. Slow is not hung.

What a step may take is relative to what steps take, and to what the process does meanwhile:

    it does nothing         15 s, or ten times the longest step
    it computes             in one piece of a step (a layer, a tile): 15 s of a processor, or ten
                            times what such a piece takes (`lookm.progress`); on a GPU a minute
    it computes, and        5 minutes, or ten times the longest step: the first piece of its kind,
    nothing is known of     or none; on a CPU that may be a large image on a small machine. On a GPU
    what                    the host may well wait actively for a kernel that never returns, but no
                            step of ours takes a minute
    it computes, silently   30 s of a processor: whatever it is, it holds the interpreter

Time of a processor is what other processes cannot take from it. Knows heartbeats and the clock;
nothing about requests or messages.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lookm.progress import Piece
from lookm.types import ModelInfo
from server.worker.activity import Activity
from server.worker.heartbeat import BEAT_S, Beat, Heart
from server.worker.worker_errors import WorkerDiedError

LATE_S = 2.0  # our own clock skipped: the machine slept, or the event loop; nobody is judged


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker may take. `step_s` is the operator's word, `load_s` is for loading."""

    step_s: float | None = None
    load_s: float = 1800.0
    silent_s: float = 3.0  # without a heartbeat and without doing anything
    silent_loading_s: float = 30.0
    silent_busy_s: float = 30.0  # without a heartbeat, of a processor
    idle_step_s: float = 15.0  # for a step in which the process does nothing
    piece_s: float = 15.0  # for a piece of a step, of a processor
    gpu_step_s: float = 60.0
    cpu_step_s: float = 300.0
    times_longest: float = 10.0  # steps may take that many times the longest step so far,
    most_s: float = 600.0  # up to here

    def step_limit_s(self, longest_s: float, *, idle: bool, on_gpu: bool) -> float:
        """For a step in a process that does nothing, or works."""
        if self.step_s is not None and not idle:
            return self.step_s
        least_s = self.idle_step_s if idle else self.gpu_step_s if on_gpu else self.cpu_step_s
        limit_s = max(least_s, min(self.most_s, self.times_longest * longest_s))
        return limit_s if self.step_s is None else min(limit_s, self.step_s)

    def piece_limit_s(self, expected_s: float, *, on_gpu: bool) -> float:
        """For a piece of a step, of a processor; inf where only the step's limit holds."""
        if self.step_s is not None or math.isinf(expected_s):
            return math.inf
        least_s = max(self.piece_s, self.gpu_step_s) if on_gpu else self.piece_s
        return max(least_s, min(self.most_s, self.times_longest * expected_s))


@dataclass(slots=True)
class Vigil:
    """What is known of one worker: when it was spawned, heard, and seen to do something.

    `busy_s` is what it has taken of a processor, as `Activity` counts it.
    """

    patience: Patience
    on_gpu: bool = False
    ready: bool = False
    begun_s: float = 0.0
    heard_s: float = 0.0
    active_s: float = 0.0
    busy_s: float = 0.0
    _busy_when_heard_s: float = 0.0
    _busy_when_begun_s: float = 0.0
    _piece: Piece = field(default_factory=Piece)

    def look(self, heart: Heart, busy_s: float) -> None:
        """What the heartbeat and the system say now."""
        if heart.heard_s != self.heard_s:
            self.heard_s, self._busy_when_heard_s = heart.heard_s, busy_s
        if heart.beat.piece != self._piece:
            self._piece, self._busy_when_begun_s = heart.beat.piece, busy_s
        self.busy_s = busy_s

    def verdict(self, beat: Beat, now_s: float) -> WorkerDiedError | None:
        """Why the worker is given up, if it is."""
        patience = self.patience
        silent_s = now_s - max(self.heard_s, self.active_s)
        limit_s = patience.silent_s if self.ready else patience.silent_loading_s
        if silent_s > limit_s:
            return WorkerDiedError(f"it has not stirred for {silent_s:.0f} s", cause="stopped")
        if not self.ready:
            if now_s - self.begun_s > patience.load_s:
                return WorkerDiedError("it did not load in time (--start-timeout-s)", cause="load")
            return None
        if self.busy_s - self._busy_when_heard_s > patience.silent_busy_s:
            return WorkerDiedError("it computes and says nothing", cause="hung")
        if not beat.began_s:
            return None
        took_s = now_s - beat.began_s
        idle_s = now_s - max(self.active_s, beat.began_s)
        for spent_s, idle in ((took_s, False), (idle_s, True)):
            limit_s = patience.step_limit_s(beat.longest_s, idle=idle, on_gpu=self.on_gpu)
            if spent_s > limit_s:
                what = f"step {beat.step} has been running for {took_s:.1f} s"
                why = f"{limit_s:.1f} s of it doing nothing" if idle else f"more than {limit_s:g} s"
                return WorkerDiedError(f"{what}, {why}", cause="hung")
        limit_s = patience.piece_limit_s(beat.piece.expected_s, on_gpu=self.on_gpu)
        if self.busy_s - self._busy_when_begun_s > limit_s:
            what = f"one piece of step {beat.step} takes more than {limit_s:.1f} s of a processor"
            return WorkerDiedError(what, cause="hung")
        return None


async def found_hung(
    heart: Heart, activity: Activity, vigil: Vigil, info: Callable[[], ModelInfo | None]
) -> WorkerDiedError:
    """Return, with why, when the worker hangs. `info` is there from when it is ready."""
    tick_s = min(BEAT_S, (vigil.patience.step_s or 600) / 4)
    vigil.begun_s = vigil.active_s = looked_s = time.monotonic()
    while True:
        await asyncio.sleep(tick_s)
        now_s = time.monotonic()
        if (known := info()) is not None:
            vigil.ready, vigil.on_gpu = True, known.device != "cpu"
        seen = activity.seen()
        if seen or now_s - looked_s > LATE_S:
            vigil.active_s = now_s
        vigil.look(heart, activity.busy_s)
        looked_s = now_s
        verdict = vigil.verdict(heart.beat, now_s)
        if verdict is not None:
            return verdict
