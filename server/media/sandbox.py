"""Runs decoders in processes of their own: what crashes, hangs or grows there is theirs alone.

At most `num_processes`, each started when it is first needed and used again; one that dies, or
takes longer than it may, is replaced. A job gives one answer (`run`) or many (`each`). Limits of
memory and of processor time are the system's, set in the process before each job
(`sandbox_process`); the limit of time is kept here. Pixels come back over a socket: a small picture
takes 1 ms more than in a thread, one of 3 megapixels 20 ms; unlike shared memory, a socket cannot
be full of what others left in it. Knows processes; what a job does is told there.
"""

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from lookm.errors import QueueFullError
from server.media.frames import receive, send
from server.media.media_error import MediaError

COMMAND = (sys.executable, "-m", "server.media.sandbox_process")
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TZ")
CLOSING_S = 0.2
TOO_SLOW = "{} takes too long to decode. Scale it down, or save it again."
NO_MEMORY = "{} takes too much memory to decode. Scale it down."
DIED = "{} cannot be decoded. Save and send it again."

T = TypeVar("T")
Answer = tuple[dict[str, Any], bytearray]


@dataclass(frozen=True, slots=True)
class Order:
    """A job by its name in `sandbox_process.JOBS`, its options, what it is expected to take.

    `what` begins the sentence that says how it failed.
    """

    job: str
    options: Mapping[str, Any]
    cost_bytes: int
    cpu_s: int
    limit_s: float  # of the clock: longer, as others may want the processor, too; of all answers
    what: str = "The image"

    def facts(self) -> dict[str, Any]:
        """As the process reads it."""
        return {
            "job": self.job,
            "options": self.options,
            "cost_bytes": self.cost_bytes,
            "cpu_s": self.cpu_s,
        }


class _Process:
    """One running `sandbox_process`. Ctrl-C in a terminal does not reach it."""

    def __init__(self) -> None:
        """Raises `OSError` where the machine has no room for it."""
        with contextlib.ExitStack() as opened:
            ours, theirs = map(opened.enter_context, socket.socketpair())
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries write a line for each odd byte
                env=_environment(),
                process_group=0,
            )
            self._connection = ours.dup()
        self.at_work = False

    def run(self, order: Order, data: bytes) -> Answer:
        """The job's first answer. Raises `MediaError`; the process may be gone then."""
        return self._answer(order, lambda: send(self._connection, order.facts(), data))

    def more(self, order: Order) -> Answer:
        """The next answer, while it is `at_work`, within the order's limit. Raises as `run`."""
        return self._answer(order, lambda: None)

    def _answer(self, order: Order, ask: Callable[[], None]) -> Answer:
        begun_s = time.monotonic()
        killer = threading.Timer(order.limit_s, self.kill)
        killer.start()
        self.at_work = True
        answer = None
        with contextlib.suppress(OSError):
            ask()
            answer = receive(self._connection)
        killer.cancel()
        if answer is None:
            late = time.monotonic() - begun_s >= order.limit_s
            raise _why(self.close(), order.what, late=late)
        self.at_work = answer[0].pop("more", False)
        if "code" in answer[0]:
            raise MediaError(answer[0]["code"], answer[0]["message"])
        return answer

    def kill(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def close(self) -> int:
        """End it, if it has not ended, and leave no zombie; returns how it ended."""
        self._connection.close()  # it ends at this, unless it is at work
        try:
            return self._process.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Sandbox:
    """Up to `num_processes` of them. Used from one event loop."""

    def __init__(self, num_processes: int) -> None:
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="sandbox")
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._closed = False

    def warm_up(self) -> None:
        """Start the first process, so that the first picture does not wait for it."""
        self._threads.submit(lambda: self._idle.put(_Process()))

    async def run(self, order: Order, data: bytes) -> Answer:
        """Do a job, and wait for it even when cancelled: what it takes is taken until then.

        Raises `MediaError`, and `QueueFullError` where the machine has no room for a process.
        """
        return await self._in_thread(partial(self._run, order, data))

    async def each(self, order: Order, data: bytes) -> AsyncGenerator[Answer]:
        """The answers of a job that has many. The process is at most one ahead of who takes them.

        It is ended where they are not taken to the end. Raises as `run`.
        """
        held: list[_Process] = []
        left_s = order.limit_s

        def ended() -> None:
            for process in held:
                process.kill()

        try:
            await self._in_thread(lambda: held.append(self._taken()))
            (process,) = held
            ask: Callable[[], Answer] = partial(process.run, order, data)
            while True:
                begun_s = time.monotonic()
                answer = await self._in_thread(ask, ended)
                if not process.at_work:
                    return
                left_s = max(0.0, left_s - (time.monotonic() - begun_s))
                yield answer
                ask = partial(process.more, replace(order, limit_s=left_s))
        finally:
            for process in held:
                await self._in_thread(partial(self._give_back, process))

    async def _in_thread(
        self, work: Callable[[], T], when_cancelled: Callable[[], None] = lambda: None
    ) -> T:
        """Do it, and wait until it is done even when cancelled."""
        doing = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            when_cancelled()
            await asyncio.wait((doing,))
            if not doing.cancelled():
                doing.exception()  # nobody else asks for it
            raise

    def close(self) -> None:
        """End every process; one that is at work ends when it has done it."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        while (process := self._take()) is not None:
            process.close()

    def _run(self, order: Order, data: bytes) -> Answer:
        """In a thread."""
        process = self._taken()
        try:
            return process.run(order, data)
        finally:
            self._give_back(process)

    def _taken(self) -> _Process:
        """One that waits for work, or a new one."""
        try:
            return self._take() or _Process()
        except OSError as error:
            raise QueueFullError(f"No process to decode in: {error.strerror}. Try later.") from None

    def _give_back(self, process: _Process) -> None:
        """It may have another job, unless it is not done with this one."""
        if process.at_work:
            process.kill()
        if process.at_work or self._closed:
            process.close()
        elif process.alive:
            self._idle.put(process)

    def _take(self) -> _Process | None:
        """One that waits for work and lives."""
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process.alive:
                    return process
                process.close()
        return None


def _why(status: int, what: str, *, late: bool) -> MediaError:
    """The error for a process that ended at its work."""
    if late or status == -signal.SIGXCPU:
        return MediaError("image_too_large", TOO_SLOW.format(what))
    if status == -signal.SIGKILL:  # the kernel's, when memory is short
        return MediaError("image_too_large", NO_MEMORY.format(what))
    return MediaError("invalid_image", DIED.format(what))


def _environment() -> dict[str, str]:
    """What an interpreter needs to import from where we import; no key and no token of ours."""
    needed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return needed | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # numpy's own would only take memory
    }
