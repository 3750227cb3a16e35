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
from server.worker.hung import Patience
from server.worker.known_images import SentImages
from server.worker.restart import RestartPolicy, Restarts
from server.worker.streams import Streams
from server.worker.suspects import Suspects
from server.worker.worker_errors import Cause, WorkerDiedError, WorkerUnavailableError
from server.worker.worker_life import WorkerLife

log = logging.getLogger("lookm.worker.client")

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
Observer = Callable[[Sequence[TokenEvent], EngineStats], None]

STOP_S = 0.3  # for a worker to leave by itself, before it is killed
DIED = "The engine stopped while answering. Send the request again."


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
        patience: Patience = Patience(),  # noqa: B008 frozen
        known_image_bytes: int = 0,
    ) -> None:
        self.config = config
        self._patience = patience
        self._known_image_bytes = known_image_bytes
        self.state: State = "stopped"
        self.info: ModelInfo | None = None
        self.stats: EngineStats | None = None
        self.restarts = 0
        self.failure: Exception | None = None
        self.observers: list[Observer] = []
        self.failure_observers: list[Callable[[Cause], None]] = []
        self._restarts = Restarts(restart_policy or RestartPolicy())
        self._suspects = Suspects()
        self._finished = totals.ZERO
        self._streams = Streams()
        self._accepted: dict[str, Callable[[], None]] = {}
        self._settled = asyncio.Event()
        self._given_up = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._worker: WorkerLife | None = None
        self._draining = False
        self._stopping = False
        self._ready_at_s: float | None = None

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
        return self._restarts.condition

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
        return self._worker.pid if self._worker else None

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

    async def wait_failed(self) -> Exception:
        """Return, with why, when there is no worker and no other will be started."""
        await self._given_up.wait()
        assert self.failure is not None
        return self.failure

    async def drain(self, timeout_s: float) -> int:
        """Accept nothing more and let what is open finish. Returns how many had to be ended."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._streams.wait_none_open()
        return self.end_running()

    def end_running(self) -> int:
        """Accept nothing more and end what is open, with `StoppingError`. Returns how many."""
        self._draining = True
        late = self._streams.ids
        for request_id in late:
            self._post(wire.Abort(request_id))
        self._streams.stop_all()
        return len(late)

    async def stop(self) -> None:
        """End the worker, and what is still open with `StoppingError`. Idempotent."""
        self._stopping = True
        self._streams.stop_all()
        if self._supervisor is None:
            return
        if self.state == "ready":
            self._post(wire.Shutdown())
            await asyncio.wait({self._supervisor}, timeout=STOP_S)
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})
        self.state = "stopped"

    async def submit(
        self, request: Request, accepted: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[TokenEvent]:
        """Stream the events of a request; the last one has a `finish`.

        `accepted` is called when the engine can refuse it no more; the first event may be far.
        Raises the engine's `LookmError` if it refuses the request (before any event),
        `WorkerUnavailableError` if there is no worker, `WorkerDiedError` if it dies meanwhile,
        `PromptRefusedError` for a prompt that was alone on workers when they died.
        Closing the generator early aborts the request; hold it in `contextlib.aclosing`.
        """
        self._require_ready()
        wire.require_sendable(request)
        digest = self._suspects.digest(request)
        self._suspects.check(digest)
        queue = self._streams.open(request.id, digest)
        self._accepted[request.id] = accepted
        self._post(wire.Add(request))
        try:
            finished = False
            while not finished:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                finished = item.finish is not None
                yield item
        finally:
            self._accepted.pop(request.id, None)
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
            retry_after_s = 5.0 + self._restarts.wait_s
            raise WorkerUnavailableError(self.condition, retry_after_s=retry_after_s)

    def _post(self, message: wire.Up) -> None:
        if self.state == "ready" and self._worker is not None:
            self._worker.post(message)

    # --- the worker -----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            self._ready_at_s = None
            sent = SentImages(self._known_image_bytes)
            self._worker = WorkerLife(self.config, self._patience, self, sent)
            failed = await self._worker.run()
            if self._stopping:
                return None
            self._report(failed)
            if self.info is None and isinstance(failed, LookmError):
                return self._give_up(failed)
            restarts = self._restarts
            restarts.count(self._ready_at_s)
            if restarts.policy.gives_up(restarts.fast_failures, ever_ready=self.info is not None):
                failures = restarts.fast_failures
                often = f"failed {failures} times in a row" if failures > 1 else "failed"
                return self._give_up(
                    WorkerUnavailableError(
                        f"The engine {often} and is not started again. Last failure: {failed}. "
                        "The log above says where."
                    )
                )
            delay_s = restarts.plan_next()
            log.warning("the worker is gone (%s); next one in %.1f s", failed, delay_s)
            self.restarts += 1
            await asyncio.sleep(delay_s)

    def _report(self, failed: Exception) -> None:
        ready = self._ready_at_s is not None
        cause = failed.cause if ready and isinstance(failed, WorkerDiedError) else "load"
        for observer in self.failure_observers:
            observer(cause)

    def _give_up(self, failure: Exception) -> None:
        self.state, self.failure = "failed", failure
        self._settled.set()
        self._given_up.set()
        log.error("the engine is not running: %s", failure)

    # --- what the worker says (`worker_life.Owner`) ----------------------------------------------

    def worker_ready(self, info: ModelInfo, stats: EngineStats) -> None:
        """It has loaded the model."""
        self.info, self.stats, self.state = info, stats, "ready"
        self._ready_at_s = time.monotonic()
        self._settled.set()

    def worker_stepped(self, events: Sequence[TokenEvent], stats: EngineStats) -> None:
        """It has run a step."""
        self.stats = stats
        for observer in self.observers:
            observer(events, stats)
        for event in events:
            if event.finish in ("stop", "length"):
                self._suspects.acquit(self._streams.digest_of(event.request_id))
        self._streams.deliver(events)

    def worker_accepted(self, request_id: str) -> None:
        """It has queued a request."""
        if (accepted := self._accepted.get(request_id)) is not None:
            accepted()

    def worker_rejected(self, request_id: str, refusal: LookmError) -> None:
        """It refuses a request."""
        self._streams.fail(request_id, refusal)

    def worker_down(self, failed: Exception | None) -> None:
        """It has died of `failed`, or is ended by us (None)."""
        if isinstance(failed, WorkerDiedError) and not self._stopping:
            self._suspects.blame(self._streams.held, failed.cause)
        self._finished = self.totals
        self.stats = None
        self.state = "restarting"
        self._settled.clear()
        self._streams.fail_all(lambda: WorkerDiedError(DIED))
