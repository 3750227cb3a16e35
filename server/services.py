"""What the routes work with: the engine, the processor, the pools, and how they come and go.

Starting is in the background: the server answers `/healthz` at once and `/readyz` when the model is
loaded. Knows the order of starting and stopping; nothing about HTTP.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from lookm.errors import QueueFullError
from lookm.models.generation import GenerationDefaults
from lookm.types import ModelInfo
from server import memory
from server.api_errors import ApiError
from server.file_store import FileStore
from server.keys.book import KeyBook
from server.loop_lag import watch_lag
from server.metrics import Metrics, Observer
from server.openai.protocols import ChatProcessor, ImageLoader, ServedEngine
from server.openai.reasoning import thinking
from server.openai.request import policies
from server.openai.request.image_cache import ImageCache
from server.openai.request.model_names import ModelNames
from server.openai.request.parse import MAX_TEXT_BYTES
from server.openai.request.pictures import PictureLoader
from server.openai.request.pools import Pools
from server.openai.request.translate import Translator
from server.openai.response_store import ResponseStore
from server.openai.tools.template_support import tool_support
from server.scrapes import Scrapes
from server.series import EngineView
from server.settings import Settings
from server.stopping import Unanswered
from server.turns import KeyTurns, Turns, current_owner
from server.version import version
from server.worker.worker_errors import Cause

log = logging.getLogger("lookm.server")


class ManagedEngine(ServedEngine, EngineView, Protocol):
    """An engine with a life: `server.worker.client.EngineClient`."""

    observers: list[Observer]
    failure_observers: list[Callable[[Cause], None]]

    @property
    def num_open(self) -> int: ...
    async def start(self) -> None: ...
    async def wait_ready(self, timeout_s: float | None = None) -> ModelInfo: ...
    async def wait_failed(self) -> Exception: ...
    async def drain(self, timeout_s: float) -> int: ...
    def end_running(self) -> int: ...
    async def stop(self) -> None: ...


class Gate:
    """Bounds the requests that are prepared, wait or are answered now: a flood costs no memory.

    Of these, those of one API key may have at most what `max_of` says of it.
    """

    def __init__(self, max_inside: int, max_of: Callable[[str], int | None]) -> None:
        self._max_inside = max_inside
        self._max_of = max_of
        self._inside: Counter[str] = Counter()

    @property
    def num_inside(self) -> int:
        """Choices of all requests that are prepared, wait or are answered now."""
        return self._inside.total()

    @contextlib.contextmanager
    def entered(self, places: int = 1) -> Iterator[None]:
        """Hold places, one for each choice. Raises `QueueFullError` where there are too few."""
        key = current_owner().key
        inside = self._inside.total()
        if inside + places > self._max_inside:
            raise QueueFullError(f"{inside} requests are in progress. Try again later.")
        most = self._max_of(key) if key else None
        if most and self._inside[key] + places > most:
            raise QueueFullError(
                f"{self._inside[key]} requests with this API key are running or waiting; "
                f"{most} are allowed. Try again later."
            )
        self._inside[key] += places
        try:
            yield
        finally:
            self._inside[key] -= places
            self._inside += Counter()  # drops what is zero


class Services:
    """The live parts of one app. Raises `PolicyError` for a default policy that does not exist."""

    def __init__(
        self,
        settings: Settings,
        engine: ManagedEngine,
        media: ImageLoader,
        load_processor: Callable[[], ChatProcessor],
        prepare: Callable[[], GenerationDefaults],
        keys: KeyBook,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.engine = engine
        self.media = media
        self.metrics = Metrics(engine)
        self.scrapes = Scrapes(self.metrics.expose)
        self.unanswered = Unanswered()
        self.files = FileStore(settings.file_memory)
        self.responses = ResponseStore(settings.response_store_memory)
        self.parsing = Turns(1)  # of large bodies
        self.gate = Gate(settings.max_running + settings.max_waiting, self.max_held)
        self.key_turns = KeyTurns(self._places)
        # Of all choices but the first of each request: half of the engine's places are for those.
        self.choice_turns = Turns(max(1, settings.max_running // 2), each=1)
        self.default_policy = policies.read(settings.kv_cache)
        self.started_at = int(time.time())
        self.model = settings.served_model_name or settings.model
        self.fingerprint = ""
        self.booting: asyncio.Task[None] | None = None
        self._lag_watch: asyncio.Task[None] | None = None
        self._load_processor = load_processor
        self._prepare = prepare
        self._pools = Pools(settings.media_threads)
        self._translator: Translator | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._rereading: asyncio.Task[None] | None = None
        self.metrics.read("lookm_media_held_bytes", lambda: media.held_bytes)
        self.metrics.read("lookm_files_held_bytes", lambda: self.files.held_bytes)
        self.metrics.read("lookm_responses_held_bytes", lambda: self.responses.held_bytes)
        self.metrics.read("lookm_process_resident_bytes", memory.resident_bytes)
        self.metrics.read("lookm_memory_used_ratio", memory.used_ratio)
        self.metrics.read("lookm_requests_waiting", self._num_waiting)
        keys.count = self.metrics.increase
        self.metrics.know("key", keys.names)
        engine.observers.append(self.metrics.on_step)
        engine.failure_observers.append(self.metrics.on_worker_failure)

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._translator is not None and self.engine.ready

    @property
    def translator(self) -> Translator:
        """Turns requests into the engine's. Raises `ApiError` while the model is not loaded."""
        if self._translator is None:
            raise ApiError("engine_unavailable", "The model is loading. Try again in a moment.")
        return self._translator

    @property
    def max_text_bytes(self) -> int:
        """Of a body, besides its images."""
        return MAX_TEXT_BYTES + (self._translator.text_limit.max_bytes if self._translator else 0)

    def deadline_s(self) -> float | None:
        """When a request that arrives now must be done, by the event loop's clock."""
        timeout_s = self.settings.request_timeout_s
        return timeout_s and asyncio.get_running_loop().time() + timeout_s

    def start(self) -> None:
        """Begin loading; `booting` ends when all is ready, or with what went wrong."""
        observe = partial(self.metrics.observe, "lookm_event_loop_lag_seconds")
        self._lag_watch = asyncio.create_task(watch_lag(observe), name="lag-watch")
        self.booting = asyncio.create_task(self._boot(), name="boot")
        self.booting.add_done_callback(_retrieve)
        self._giving_back = asyncio.create_task(memory.give_back_memory(), name="give-back")

    def max_held(self, key: str) -> int | None:
        """Choices with this API key (its digest) that may run or wait."""
        return self.settings.held_by_key(self._places(key))

    def _places(self, key: str) -> int | None:
        account = self.keys.account(key)
        own = account and account.limits.places
        return own or self.settings.max_running_per_key

    def reread_soon(self) -> None:
        """`reread_keys`, after those that were asked for before."""
        self._rereading = asyncio.create_task(self.reread_keys(self._rereading), name="reread")

    async def reread_keys(self, before: asyncio.Task[None] | None = None) -> None:
        """Take over what the file of key limits says now; where it is broken, nothing changes."""
        if before is not None:
            await asyncio.wait({before})
        try:
            file = await asyncio.to_thread(self.keys.read)
        except ValueError as error:
            log.error("%s; its limits stay as they were", error)
            return
        self.keys.use(file)
        self.metrics.know("key", self.keys.names)
        self.key_turns.refresh()
        log.info("key limits: %d keys with a name", len(file.keys))

    def end_running(self) -> None:
        """End what runs, each request with its error; nothing new is accepted."""
        self.unanswered.end()
        self.engine.end_running()

    async def stop(self) -> None:
        """Let running requests finish, within the bound, then end everything."""
        if self.booting is not None and not self.booting.done():
            self.booting.cancel()
        if self._giving_back is not None:
            self._giving_back.cancel()
        await self.engine.drain(self.settings.drain_timeout_s)
        await self.engine.stop()
        await self.media.aclose()
        if self._lag_watch is not None:
            self._lag_watch.cancel()
        self._pools.shutdown()

    def num_coming(self, num_choices: int) -> int:
        """Choices that have not reached the engine, besides those of a request that is about to."""
        return max(0, self.gate.num_inside - self.engine.num_open - num_choices)

    def _num_waiting(self) -> int:
        """Choices that wait: in the engine, and for their turn to be given to it."""
        outside = self.choice_turns.num_waiting + self.key_turns.num_waiting
        return self.engine.totals.waiting + outside

    async def _boot(self) -> None:
        defaults = await self._pools.text(self._prepare)
        log.info("sampling where a request does not say: %s", defaults)
        await self.engine.start()
        processor = await self._pools.text(self._load_processor)
        support = await self._pools.text(lambda: tool_support(processor))
        form = support.dialect and support.dialect.form.name
        log.info("tool calls: %s", form or f"refused. {support.reason}")
        thinks = await self._pools.text(lambda: thinking(processor))
        info = await self.engine.wait_ready(self.settings.start_timeout_s)
        self.model = self.settings.served_model_name or info.name
        self.fingerprint = fingerprint(info)
        self.metrics.describe_build(
            version=version(), model=self.model, dtype=info.dtype, device=info.device
        )
        if self.settings.metrics_vllm_names:
            self.metrics.add_vllm_names(self.model)
        self._translator = Translator(
            names=ModelNames.of(self.model, self.settings.model_alias),
            info=info,
            default_policy=self.default_policy,
            default_reuse=self.settings.reuse,
            processor=processor,
            pictures=PictureLoader(
                media=self.media,
                processor=processor,
                pools=self._pools,
                metrics=self.metrics,
                cache=ImageCache(self.settings.image_input_memory),
                files=self.files,
                max_images=self.settings.max_images,
                max_tokens=info.max_context_tokens,
            ),
            pools=self._pools,
            tool_support=support,
            thinking=thinks,
            presets=policies.taken(info),
            defaults=defaults,
            positions=self.settings.positions,
        )


def fingerprint(info: ModelInfo) -> str:
    """OpenAI's `system_fingerprint`: changes when equal requests may be answered differently."""
    facts = f"{version()} {info.name} {info.dtype} {info.device}"
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]


def _retrieve(task: asyncio.Task[None]) -> None:
    """Mark the outcome as seen: `/readyz` and `server.launch` report it."""
    if not task.cancelled():
        task.exception()
