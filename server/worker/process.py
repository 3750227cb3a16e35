"""The worker's main loop: take messages, step the engine, send what it said. One process.

Started as `python -m server.worker.process ADDRESS` and not through multiprocessing: no pickle, no
second run of the parent's `__main__`, no fork of an event loop, and the API process can start it
without importing it (the engine stays out of the API process by contract).

Its standard input is a pipe that only the parent holds: when it ends, the parent is gone, and so is
this process, even in the middle of a step (on Linux the kernel ends it, even where it hangs).
What asks to stop is left to the parent, which drains first. Knows nothing about HTTP, and does
not import torch before the thread settings are made.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from typing import Protocol

from lookm.config import EngineConfig
from lookm.errors import LookmError
from lookm.progress import Progress
from lookm.threads import sleep_while_waiting
from lookm.types import EngineStats, ModelInfo, Request, TokenEvent
from server import signals
from server.worker import wire
from server.worker.channel import WorkerChannel
from server.worker.heartbeat import Pulse
from server.worker.known_images import KnownImages

log = logging.getLogger("lookm.worker")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Exceptions whose message names sizes and devices. Others may quote what they were given.
SAFE_MESSAGES = (RuntimeError, MemoryError, OSError, ImportError, LookmError, AssertionError)


class EngineLike(Protocol):
    """What the loop needs of an engine: `lookm.engine.Engine`, or the fake one."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def step(self) -> list[TokenEvent]: ...
    def stats(self) -> EngineStats: ...


def main(address: str, pipe: int | None = None) -> int:
    """Run one worker against the API at `address`; the exit status is 0 after `Shutdown`.

    Its heartbeat goes into `pipe`.
    """
    for number in (*signals.STOPPING, *signals.IGNORED):
        signal.signal(number, signal.SIG_IGN)
    _let_kernel_end_us_with_parent()
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    pulse = Pulse(pipe)
    pulse.start()
    channel = WorkerChannel(address)
    try:
        start = channel.receive()
        assert isinstance(start, wire.Start)
        logging.basicConfig(
            level=start.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        set_thread_environment(start.config)
        try:
            engine = load_engine(start.config)
        except LookmError as error:  # the operator's to mend: the message is the whole story
            channel.send(wire.Failed(wire.error_name(error), str(error)))
            return 1
        serve(channel, engine, pulse)
    except Exception as error:  # noqa: BLE001 - the worker's edge: report, then leave
        channel.send(_failure(error))
        return 1
    finally:
        channel.close()
    return 0


def serve(channel: WorkerChannel, engine: EngineLike, pulse: Pulse) -> None:
    """Say `Ready`, then step while there is work and sleep while there is none, to `Shutdown`."""
    pulse.progress = engine.progress
    channel.send(wire.Ready(engine.info, engine.stats()))
    images = KnownImages()
    while True:
        while channel.waiting() or not engine.has_work:
            message = channel.receive()
            if isinstance(message, wire.Shutdown):
                return
            with pulse.step():
                _handle(message, engine, channel, images)
        with pulse.step():
            events = engine.step()
        for event in events:
            if event.refused is not None:
                channel.send(wire.late_rejection(event))
        told = tuple(event for event in events if event.refused is None)
        channel.send(wire.Step(told, engine.stats()))


def _handle(
    message: wire.Up, engine: EngineLike, channel: WorkerChannel, images: KnownImages
) -> None:
    match message:
        case wire.Add(request):
            _add(images.whole(request), engine, channel)
        case wire.Together(requests):
            for request in requests:
                _add(images.whole(request), engine, channel)
        case wire.Forget():
            images.forget(message)
        case wire.Abort(request_id):
            engine.abort(request_id)
        case _:
            raise AssertionError(f"unexpected {type(message).__name__}")


def _add(request: Request, engine: EngineLike, channel: WorkerChannel) -> None:
    try:
        engine.add(request)
    except LookmError as error:
        channel.send(wire.rejection(request.id, error))
    else:
        channel.send(wire.Accepted(request.id))


def load_engine(config: EngineConfig) -> EngineLike:
    """The engine `config` asks for; a model named `fake` needs no torch."""
    if config.model == "fake" or config.model.startswith("fake:"):
        from server.fake.engine import FakeEngine

        return FakeEngine.from_config(config)
    from lookm.engine import Engine

    engine = Engine.from_config(config)
    engine.grammars.warm_up()
    return engine


def set_thread_environment(config: EngineConfig) -> None:
    """Explicit OpenMP settings, made before torch is imported: later ones have no effect.

    Waiting threads sleep: the API process needs the cores between steps. A configured thread count
    wins over the environment; the environment wins over the guess.
    """
    sleep_while_waiting()
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(_usable_cores()))


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _failure(error: Exception) -> wire.Failed:
    """`error` for the API; logged here with its frames, but never with values it may quote."""
    name = type(error).__name__
    message = str(error)[:500] if isinstance(error, SAFE_MESSAGES) else "(message withheld)"
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("the engine failed: %s: %s\n%s", name, message, frames)
    return wire.Failed(name, message)


def _let_kernel_end_us_with_parent() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _die_with_parent() -> None:
    try:
        while os.read(0, 4096):
            pass
    finally:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
