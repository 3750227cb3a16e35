"""One worker from its spawn to its death, and what is said to and heard from it meanwhile.

Knows the process, its channel and its heartbeat; nothing about requests, or the next worker.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from lookm.config import EngineConfig
from lookm.errors import LookmError
from lookm.types import EngineStats, ModelInfo, TokenEvent
from server import logs
from server.worker import wire
from server.worker.activity import Activity
from server.worker.channel import ApiChannel
from server.worker.hung import Patience, Vigil, found_hung
from server.worker.known_images import SentImages
from server.worker.launch import WorkerProcess
from server.worker.worker_errors import WorkerDiedError

log = logging.getLogger("lookm.worker.client")

DEAD_WORKER_READ_S = 0.1  # for what a dead worker had sent to arrive


class Owner(Protocol):
    """Who is told: `server.worker.client.EngineClient`."""

    def worker_ready(self, info: ModelInfo, stats: EngineStats) -> None: ...
    def worker_stepped(self, events: Sequence[TokenEvent], stats: EngineStats) -> None: ...
    def worker_accepted(self, request_id: str) -> None: ...
    def worker_rejected(self, request_id: str, refusal: LookmError) -> None: ...
    def worker_down(self, failed: Exception | None) -> None: ...


class WorkerLife:
    """One worker. `run` is its life; `post` is how it is told something."""

    def __init__(
        self, config: EngineConfig, patience: Patience, owner: Owner, sent: SentImages
    ) -> None:
        self._patience = patience
        self._owner = owner
        self._sent = sent
        self._info: ModelInfo | None = None
        self._process: WorkerProcess | None = None
        self._outbox: asyncio.Queue[wire.Up] = asyncio.Queue()
        self.post(wire.Start(config, log.getEffectiveLevel(), logs.configured()))

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        return self._process.pid if self._process else None

    def post(self, message: wire.Up) -> None:
        """Send, in order, when the worker can be reached."""
        self._outbox.put_nowait(message)

    async def run(self) -> Exception:
        """From spawn to death; what it died of. Cancelled, it ends the worker."""
        channel = ApiChannel()
        try:
            self._process = await WorkerProcess.spawn(channel.address)
            failed: Exception | None = None
            try:
                failed = await self._watch(self._process, channel)
                return failed
            finally:
                self._owner.worker_down(failed)
                await self._process.kill()
        except OSError as error:
            return error
        finally:
            self._process = None
            channel.close()

    async def _watch(self, process: WorkerProcess, channel: ApiChannel) -> Exception:
        """Talk to it until it has ended, hangs, or said that it failed."""
        ended = asyncio.create_task(process.wait_failed())
        receiver = asyncio.create_task(self._receive(channel))
        sender = asyncio.create_task(self._send(channel))
        hung = asyncio.create_task(self._find_hung(process))
        tasks = (ended, receiver, sender, hung)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not receiver.done():
                await asyncio.wait({receiver}, timeout=DEAD_WORKER_READ_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (receiver, sender):
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("lost the worker to a bug of ours or of an observer", exc_info=error)
                return WorkerDiedError("its connection broke", cause="killed")
        return next(task.result() for task in (receiver, hung, ended) if not task.cancelled())

    async def _find_hung(self, process: WorkerProcess) -> Exception:
        vigil = Vigil(self._patience)
        return await found_hung(process.heart, Activity(process.pid), vigil, lambda: self._info)

    async def _send(self, channel: ApiChannel) -> None:
        """Everything that waits, at once: the choices of one request share their images."""
        while True:
            messages = [await self._outbox.get()]
            while not self._outbox.empty():
                messages.append(self._outbox.get_nowait())
            for message in self._sent.lighter(messages):
                await channel.send(wire.encode(message))

    async def _receive(self, channel: ApiChannel) -> Exception:
        """Dispatch what the worker says until it says why it failed."""
        while True:
            match await channel.receive():
                case wire.Step(events, stats):
                    self._owner.worker_stepped(events, stats)
                case wire.Accepted(request_id):
                    self._owner.worker_accepted(request_id)
                case wire.Rejected(request_id, error, text, param):
                    refusal = wire.error_from(error, text, param)
                    assert refusal is not None
                    self._owner.worker_rejected(request_id, refusal)
                case wire.Ready(info, stats):
                    channel.unlink()
                    self._info = info
                    self._owner.worker_ready(info, stats)
                case wire.Failed(error, text):
                    named = f"{error}: {text}"
                    return wire.error_from(error, text) or WorkerDiedError(named, cause="failed")
