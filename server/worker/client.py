"""The API process's side of the engine: submit a request, read its events, survive the worker.

Every accepted request ends in exactly one terminal event, or in `WorkerDiedError`. A worker that
dies is replaced; counters never go back. Runs on one asyncio event loop and never blocks it.

Knows nothing about HTTP, tokens or torch, and never imports the engine.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from lookm.config import EngineConfig
from lookm.errors import LookmError
from lookm.types import EngineStats, ModelInfo, Request, TokenEvent
from server.worker import totals, wire
from server.worker.channel import ApiChannel
from server.worker.launch import WorkerProcess
from server.worker.restart import RestartPolicy
from server.worker.streams import Streams
from server.worker.worker_errors import WorkerDiedError, WorkerUnavailableError

log = logging.getLogger("lookm.worker.client")

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
Observer = Callable[[Sequence[TokenEvent], EngineStats], None]

STOP_S = 0.5  # for a worker to leave by itself, before it is killed
ABORT_S = 0.3  # for the worker to end aborted requests itself, at the end of a drain
STEP_TIMEOUT_S = 600.0  # for one engine step: the longest prefill, and a kernel's first compilation
STOPPING = "The server is stopping. Send the request again."
DEAD_WORKER_READ_S = 0.1  # for what a dead worker had sent to arrive


class EngineClient:
    """One engine, whichever worker process holds it now.

    `observers` are called with the events and statistics of every engine step, before the events
    are delivered; metrics register here. They must not block and must not raise.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        restart_policy: RestartPolicy | None = None,
        step_timeout_s: float = STEP_TIMEOUT_S,
    ) -> None:
        self.config = config
        self._step_timeout_s = step_timeout_s
        self._heard_s = 0.0
        self.state: State = "stopped"
        self.info: ModelInfo | None = None
        self.stats: EngineStats | None = None
        self.restarts = 0
        self.failure: Exception | None = None
        self.observers: list[Observer] = []
        self._policy = restart_policy or RestartPolicy()
        self._finished = totals.ZERO
        self._streams = Streams()
        self._outbox: asyncio.Queue[wire.Up] = asyncio.Queue()
        self._settled = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._process: WorkerProcess | None = None
        self._draining = False
        self._stopping = False
        self._ready_at_s: float | None = None
        self._fast_failures = 0
        self._next_start_s = 0.0

    # --- what the app reads ---------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether `submit` would be accepted now."""
        return self.state == "ready" and not self._draining

    @property
    def condition(self) -> str:
        """Why there is no worker, and when the next one is tried: a sentence for clients."""
        if self._leaving:
            return "The server is shutting down."
        if self.state == "failed":
            return "The engine is not running; its operator must restart it."
        if self.state != "restarting":
            return "The engine is starting."
        failures, wait_s = self._fast_failures, self._next_start_s - time.monotonic()
        often = f"failed {failures} times in a row" if failures > 1 else "failed"
        again = f"is started again in {wait_s:.0f} s" if wait_s >= 1 else "is being started again"
        return f"The engine {often} and {again}. The server's log says why."

    @property
    def totals(self) -> EngineStats:
        """Counters over every worker there has been; gauges are 0 while there is none."""
        return totals.add(self._finished, self.stats or totals.ZERO)

    @property
    def _leaving(self) -> bool:
        return self._draining or self._stopping or self.state == "stopped"

    @property
    def num_open(self) -> int:
        """Requests submitted and not yet ended."""
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._process.pid if self._process else None

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Spawn the worker and return at once; `wait_ready` tells how that went."""
        assert self._supervisor is None, "start() is called once"
        self.state = "starting"
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_ready(self, timeout_s: float | None = None) -> ModelInfo:
        """The loaded model. Raises what kept it from loading (a `LookmError` holds the fix), or
        `WorkerUnavailableError` where the worker failed otherwise, or `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            await self._settled.wait()
        if self.failure is not None:
            raise self.failure
        assert self.info is not None
        return self.info

    async def drain(self, timeout_s: float) -> int:
        """Accept nothing more and let what is open finish. Returns how many had to be aborted."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._streams.wait_none_open()
        late = self._streams.ids
        for request_id in late:
            self._post(wire.Abort(request_id))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_S):
                await self._streams.wait_none_open()
        self._streams.fail_all(WorkerUnavailableError, STOPPING)
        return len(late)

    async def stop(self) -> None:
        """End the worker, and what is still open with `WorkerUnavailableError`. Idempotent."""
        self._stopping = True
        self._streams.fail_all(WorkerUnavailableError, STOPPING)
        if self._supervisor is None:
            return
        if self.state == "ready":
            self._post(wire.Shutdown())
            await asyncio.wait({self._supervisor}, timeout=STOP_S)
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})
        self.state = "stopped"

    async def submit(self, request: Request) -> AsyncGenerator[TokenEvent]:
        """Stream the events of a request; the last one has a `finish`.

        Raises the engine's `LookmError` if it refuses the request (before any event),
        `WorkerUnavailableError` if there is no worker, `WorkerDiedError` if it dies meanwhile.
        Closing the generator early aborts the request; hold it in `contextlib.aclosing`.
        """
        self._require_ready()
        wire.require_sendable(request)
        queue = self._streams.open(request.id)
        self._outbox.put_nowait(wire.Add(request))
        try:
            finished = False
            while not finished:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                finished = item.finish is not None
                yield item
        finally:
            self._abort_if_open(request.id)

    def _abort_if_open(self, request_id: str) -> None:
        # Nothing is awaited here: a cancelled task may not get to finish an await.
        if self._streams.abort(request_id):
            self._post(wire.Abort(request_id))

    def _require_ready(self) -> None:
        if self._leaving:
            raise WorkerUnavailableError(self.condition, retry_after_s=10.0)
        if self.state == "failed":
            raise WorkerUnavailableError(self.condition)
        if self.state != "ready":
            wait_s = max(0.0, self._next_start_s - time.monotonic())
            raise WorkerUnavailableError(self.condition, retry_after_s=5.0 + wait_s)

    def _post(self, message: wire.Up) -> None:
        if self.state == "ready":
            self._outbox.put_nowait(message)

    # --- the worker -----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            self._ready_at_s = None
            failed = await self._run_worker()
            served_s = time.monotonic() - self._ready_at_s if self._ready_at_s else 0.0
            if self._stopping:
                return
            if self.info is None and isinstance(failed, LookmError):
                self._give_up(failed)
                return
            self._fast_failures = self._policy.count(self._fast_failures, served_s)
            if self._policy.gives_up(self._fast_failures, ever_ready=self.info is not None):
                self._give_up(
                    WorkerUnavailableError(
                        f"The engine failed {self._fast_failures} times in a row and is not "
                        f"started again. Last failure: {failed}. The log above says where."
                    )
                )
                return
            delay_s = self._policy.delay_s(self._fast_failures)
            log.warning("the worker is gone (%s); next one in %.1f s", failed, delay_s)
            self.restarts += 1
            self._next_start_s = time.monotonic() + delay_s
            await asyncio.sleep(delay_s)

    def _give_up(self, failure: Exception) -> None:
        self.state, self.failure = "failed", failure
        self._settled.set()
        log.error("the engine is not running: %s", failure)

    async def _run_worker(self) -> Exception:
        """One worker, from spawn to death; what it died of."""
        self._outbox = asyncio.Queue()
        self._outbox.put_nowait(wire.Start(self.config, log.getEffectiveLevel()))
        channel = ApiChannel()
        try:
            self._process = await WorkerProcess.spawn(channel.address)
            try:
                return await self._watch(self._process, channel)
            finally:
                self._mark_down()
                await self._process.kill()
        except OSError as error:
            return error
        finally:
            self._process = None
            channel.close()

    async def _watch(self, process: WorkerProcess, channel: ApiChannel) -> Exception:
        """Talk to one worker until it has ended or said that it failed."""
        status = asyncio.create_task(process.wait())
        receiver = asyncio.create_task(self._receive(channel))
        sender = asyncio.create_task(self._send(channel))
        hung = asyncio.create_task(self._find_hung())
        tasks = (status, receiver, sender, hung)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if status.done() and not receiver.done() and not self._stopping:
                await asyncio.wait({receiver}, timeout=DEAD_WORKER_READ_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (receiver, sender):
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("lost the worker to a bug of ours or of an observer", exc_info=error)
                return WorkerDiedError("its connection broke")
        for task in (receiver, hung):
            if not task.cancelled():
                return task.result()
        return WorkerDiedError(f"it ended with status {status.result()}")

    async def _send(self, channel: ApiChannel) -> None:
        """Everything that waits, at once: the choices of one request share their images."""
        while True:
            messages = [await self._outbox.get()]
            while not self._outbox.empty():
                messages.append(self._outbox.get_nowait())
            for message in wire.joined(messages):
                await channel.send(wire.encode(message))

    async def _find_hung(self) -> Exception:
        """Return when the worker owes events and has said nothing for longer than any step takes.

        It speaks after every step, so there is no heartbeat: silence is only a sign with work open.
        """
        limit_s = self._step_timeout_s
        self._heard_s = time.monotonic()
        while time.monotonic() - self._heard_s < limit_s:
            await asyncio.sleep(min(1.0, limit_s / 4))
            if self.state != "ready" or not self._streams.awaited:
                self._heard_s = time.monotonic()
        return WorkerDiedError(f"no step ended within {limit_s:g} s (--step-timeout-s)")

    async def _receive(self, channel: ApiChannel) -> Exception:
        """Dispatch what the worker says until it says why it failed."""
        while True:
            message = await channel.receive()
            self._heard_s = time.monotonic()
            match message:
                case wire.Step(events, stats):
                    self._on_step(events, stats)
                case wire.Rejected(request_id, error, text, param):
                    refusal = wire.error_from(error, text, param)
                    assert refusal is not None
                    self._streams.fail(request_id, refusal)
                case wire.Ready(info, stats):
                    channel.unlink()
                    self._on_ready(info, stats)
                case wire.Failed(error, text):
                    return wire.error_from(error, text) or WorkerDiedError(f"{error}: {text}")

    def _on_ready(self, info: ModelInfo, stats: EngineStats) -> None:
        self.info, self.stats, self.state = info, stats, "ready"
        self._ready_at_s = time.monotonic()
        self._settled.set()

    def _on_step(self, events: Sequence[TokenEvent], stats: EngineStats) -> None:
        self.stats = stats
        for observer in self.observers:
            observer(events, stats)
        self._streams.deliver(events)

    def _mark_down(self) -> None:
        self._finished = self.totals
        self.stats = None
        self.state = "restarting"
        self._settled.clear()
        self._streams.fail_all(
            WorkerDiedError, "The engine stopped while answering. Send the request again."
        )
