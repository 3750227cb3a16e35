"""The worker's heartbeat: a pipe on which a thread of its own says what runs, since when.

Both processes read one monotonic clock, so that a worker that falls silent has said when it began
what it does not end. Knows nothing about engines, and judges nobody: that is `hung`'s.

    40 bytes   number of the step, its begin (0: none runs), the longest step so far; the begin of
               the piece of it that runs, what that is expected to take; little-endian
"""

import asyncio
import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from lookm.progress import Piece, Progress

BEAT_S = 0.5
_BEAT = struct.Struct("<Qdddd")


class Beat(NamedTuple):
    """What the worker said last. Seconds; `began_s` is a time of `time.monotonic`."""

    step: int = 0
    began_s: float = 0.0
    longest_s: float = 0.0
    piece: Piece = Piece()


class Pulse:
    """The worker's end. Without a pipe it counts and says nothing. `progress` is the engine's."""

    def __init__(self, pipe: int | None = None) -> None:
        self.progress = Progress()
        self._pipe = pipe
        self._step = 0
        self._began_s = self._longest_s = 0.0

    def start(self) -> None:
        """Beat from now on, until the other end is gone."""
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """The body is a step: what runs, and how long it may take."""
        self._step += 1
        self._began_s = time.monotonic()
        yield
        self._longest_s = max(self._longest_s, time.monotonic() - self._began_s)
        self._began_s = 0.0

    def _beat(self) -> None:
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError):
            while True:
                with contextlib.suppress(BlockingIOError):  # full: the API does not read
                    step = (self._step, self._began_s, self._longest_s)
                    os.write(self._pipe, _BEAT.pack(*step, *self.progress.piece))
                time.sleep(BEAT_S)


class Heart:
    """The API's end: what was heard last, and when."""

    def __init__(self) -> None:
        self._read, self.pipe = os.pipe()
        os.set_blocking(self._read, False)
        self.beat = Beat()
        self.heard_s = time.monotonic()

    def listen(self) -> None:
        """Read beats as they come; the worker has its end of the pipe by now."""
        os.close(self.pipe)
        self.pipe = -1
        asyncio.get_running_loop().add_reader(self._read, self._hear)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        if self._read >= 0:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            if self.pipe >= 0:
                os.close(self.pipe)
        self._read = -1

    def _hear(self) -> None:
        data = os.read(self._read, 1024 * _BEAT.size)
        if len(data) < _BEAT.size:  # the worker is gone
            asyncio.get_running_loop().remove_reader(self._read)
            return
        end = len(data) - len(data) % _BEAT.size
        step, began_s, longest_s, *piece = _BEAT.unpack(data[end - _BEAT.size : end])
        self.beat = Beat(step, began_s, longest_s, Piece(*piece))
        self.heard_s = time.monotonic()
