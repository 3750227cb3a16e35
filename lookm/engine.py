"""The whole loop on one screen: schedule, run, postprocess.

    requests -> add -> [ waiting -> running ] -> step -> TokenEvents

`step` asks the scheduler who runs, the runner to compute it, and turns new tokens into events.
Every accepted request ends in exactly one event that has a `finish`. Knows nothing about HTTP,
processes or threads: one owner drives it.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from lookm.admission import check_fits, check_request, fits
from lookm.attention import choose
from lookm.batch import Batch, Encode, Prefill
from lookm.cache import PagePool, SequenceCache
from lookm.cache.table import Int64
from lookm.config import EngineConfig
from lookm.device import choose_device, choose_dtype
from lookm.elastic import opened
from lookm.errors import LookmError, QueueFullError, RequestError
from lookm.graphs import make_graphs
from lookm.memory import make_plan
from lookm.models.adapter import Adapter
from lookm.models.image_layouts import arranged
from lookm.models.loading import find, load_model, served_name
from lookm.models.processor import Processor
from lookm.pace import Pace
from lookm.pages import PageLayout
from lookm.parking import Parking
from lookm.policy import PRESETS, Recipe, resolve
from lookm.postprocess import Postprocessor
from lookm.prompts import Prompts
from lookm.recovery import TOO_LARGE, Outcome, Recovery
from lookm.runner import Runner
from lookm.sampling import SampledToken
from lookm.scheduler import Scheduler
from lookm.sequence import SequenceState
from lookm.sizing import kept_rows
from lookm.snapshot import snapshot
from lookm.store import PromptStore
from lookm.totals import Totals
from lookm.types import EngineStats, ImageInput, ModelInfo, Request, TokenEvent

logger = logging.getLogger(__name__)

GRAMMAR_WAIT_S = 0.005  # of a step in which nothing else is to be done


class Engine:
    """Answers requests by continuous batching over one model and one page pool."""

    def __init__(
        self,
        adapter: Adapter,
        processor: Processor,
        config: EngineConfig,
        *,
        model_path: str,
        image: ImageInput | None = None,
    ) -> None:
        """Decide the plan, on a GPU by trying a long prefill and encoding such an `image`."""
        backend = choose(config.attention, adapter.device, adapter.dtype)
        adapter.accelerate(backend.model)
        plan = make_plan(config, adapter, backend, model_path=model_path, image=image)
        self.plan = plan
        self.processor = processor
        self.progress = adapter.progress
        self._adapter = adapter
        self._pool = PagePool(
            plan.num_pages,
            PageLayout.of(plan, adapter.dtype),
            device=adapter.device,
            write_rows=backend.write_rows,
            read_rows=backend.read_rows,
        )
        store = PromptStore(plan.prompt_store_bytes, adapter.device)
        self._prompts = Prompts(store, adapter, backend)
        self._parking = Parking(
            self._pool,
            adapter.image_token_id,
            adapter.dimensions.windows_L,
            enabled=config.parking,
        )
        self._pace = Pace.of(config, adapter.device.type)
        self._scheduler = Scheduler(self._pool, store, self._parking, self._pace, config)
        self._max_waiting = max(1, config.max_waiting)
        self._runner = Runner(
            adapter,
            self._pool,
            backend,
            config.image_cache_bytes,
            self._prompts,
            make_graphs(config, plan, adapter, self._pool, backend),
            tile_tokens=self._pace.tile_tokens,
        )
        self._recovery = Recovery(self._runner, self._scheduler)
        # Asked of the model: checkpoints pad their vocabulary by what tokenizers do not say.
        num_logits = adapter.logits(adapter.embed_tokens([0])).shape[-1]
        self._postprocessor = Postprocessor(processor, adapter.eos_ids, num_logits)
        self.grammars = self._postprocessor.grammars
        self.presets = PRESETS  # what requests may ask for; a study may add to it
        self._sequences: dict[str, SequenceState] = {}
        self._aborted: list[SequenceState] = []
        self._totals = Totals()

    @classmethod
    def from_config(cls, config: EngineConfig = EngineConfig()) -> "Engine":  # noqa: B008 frozen
        """Load the model, decide the plan and log it. Raises `ModelError` or `ConfigError`."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        checkpoint = find(config.model)
        processor = Processor.of(checkpoint, name=served_name(config.model))
        dtype = choose_dtype(config.dtype, checkpoint.dtype, device)
        path = str(checkpoint.folder)
        model, family = load_model(path, dtype=dtype, device=device, quantize=config.quantization)
        image = processor.large_image() if device.type == "cuda" else None
        engine = cls(Adapter(model, family), processor, config, model_path=path, image=image)
        logger.info("engine plan: %s", engine.plan)
        return engine

    @property
    def info(self) -> ModelInfo:
        """What the rest of the system may know about the model."""
        return ModelInfo(
            name=self.processor.name,
            max_context_tokens=self.plan.max_context_tokens,
            kv_bytes_per_token=self.plan.kv_bytes_per_token,
            page_tokens=self.plan.page_tokens,
            capacity_bytes=self.plan.capacity_bytes,
            num_layers=self.plan.num_layers,
            dtype=self.plan.dtype,
            kv_cache_dtype=self.plan.kv_cache_dtype,
            device=self.plan.device,
            windows=self._adapter.dimensions.windows_L,
            causal=self._adapter.family.causal(has_images=True),
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._sequences or self._aborted)

    def add(self, request: Request) -> None:
        """Queue a request. Raises `LookmError` if it can never be served, or the queue is full."""
        if request.id in self._sequences:
            raise RequestError(f"request id {request.id!r} is already in use")
        recipe = resolve(request.policy, self.presets)
        request = replace(request, images=arranged(request.images, self._adapter.family))
        ids_T = torch.tensor(request.prompt_ids, dtype=torch.int64)
        is_image_T = ids_T == self._adapter.image_token_id
        check_request(request, ids_T[~is_image_T], self._adapter)
        images_end = int(is_image_T.nonzero().max()) + 1 if is_image_T.any() else 0
        num_together = self._adapter.family.num_together(len(ids_T), images_end)
        windows_L = self._adapter.dimensions.windows_L

        def bound(each: Recipe) -> Int64:
            return kept_rows(each, is_image_T, windows_L, causal=not num_together).bound_L

        info = self.info
        recipe, bound_L, elastic = opened(recipe, bound, lambda rows: fits(request, rows, info))
        check_fits(request, bound_L, self.plan, info)
        sequence = SequenceState(
            request=request,
            recipe=recipe,
            bound_L=bound_L,
            cache=SequenceCache(self._pool, self.plan.num_layers),
            sampler=self._postprocessor.sampler(request.sampling, request.prompt_ids),
            detokenizer=self._postprocessor.detokenizer(request.sampling),
            tokens=list(request.prompt_ids),
            num_together=num_together,
            elastic=elastic,
        )
        sequence.keys = self._prompts.keys(sequence)
        try:
            self._scheduler.add(sequence)
        except QueueFullError:
            sequence.sampler.close()
            raise
        self._sequences[request.id] = sequence

    def abort(self, request_id: str) -> None:
        """End a request; its pages are free at once. Its last event comes with the next step."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)
            sequence.sampler.close()
            self._aborted.append(sequence)

    def step(self) -> list[TokenEvent]:
        """Run one step of whatever is due; returns what it produced."""
        events = [self._postprocessor.end(sequence, "abort") for sequence in self._aborted]
        self._aborted.clear()
        events += self._end_structured()
        began_s = time.monotonic()
        due = self._scheduler.schedule()
        if due.is_empty and self._sequences and not events:
            self.grammars.wait(GRAMMAR_WAIT_S)
        batch, refused = self._prepare(due, began_s + self._pace.encode_s(due))
        events += refused
        if batch.num_tokens:
            started_s = time.monotonic()
            outcome = self._recovery.run(batch)
            spent_s = time.monotonic() - started_s
            self._totals.account(batch, spent_s)
            if batch.prefills:
                self._pace.learn(sum(each.work_tokens for each in batch.prefills), spent_s)
            else:
                self._pace.learn_decode(spent_s)
            self.grammars.settle()
            events += self._events(outcome)
        for prefill in batch.long:
            events += self._advance(prefill, began_s + self._pace.step_s)
        self._totals.last_step_s = time.monotonic() - began_s
        return events

    def _advance(self, prefill: Prefill, until_s: float) -> list[TokenEvent]:
        """Run a long prefill on for the rest of the step's time."""
        started_s = time.monotonic()
        is_late = self._pace.pause(until_s, self.plan.num_layers)
        done, outcome = self._recovery.advance(prefill, is_late)
        self.grammars.settle()
        clock = prefill.sequence.clock
        clock.prefill_s += time.monotonic() - started_s
        if done:
            self._pace.learn(prefill.work_tokens, clock.prefill_s)
        return self._events(outcome)

    def generate(self, requests: Iterable[Request]) -> Iterator[TokenEvent]:
        """Answer requests together and yield events as they come, for offline use.

        `requests` may be of any number, and lazy: they are taken as the queue has room. Closing
        the generator early, or a request that is refused, ends what is left of them at once.
        """
        mine: set[str] = set()
        source = iter(requests)
        waiting = next(source, None)
        try:
            while waiting is not None or self.has_work:
                while waiting is not None and len(self._scheduler.waiting) < self._max_waiting:
                    self.add(waiting)
                    mine.add(waiting.id)
                    waiting = next(source, None)
                for event in self.step():
                    if event.finish is not None:
                        mine.discard(event.request_id)
                    yield event
        finally:
            for request_id in mine:
                self.abort(request_id)
            # Nobody is left to read the last events of these.
            self._aborted = [seq for seq in self._aborted if seq.request.id not in mine]

    def stats(self) -> EngineStats:
        """A snapshot of the pool, the queues and the counters."""
        return snapshot(self._pool, self._parking, self._scheduler, self._runner, self._totals)

    def check(self) -> None:
        """Assert the invariants of pool and scheduler; for tests, after each step."""
        self._scheduler.check()

    def _prepare(self, batch: Batch, until_s: float) -> tuple[Batch, list[TokenEvent]]:
        """Encode images until then, and embed prompts. A request that fails here ends alone.

        A prefill that is not ready then is left out, and handed out again.
        """
        events, failed = [], set()
        ready: list[Prefill] = []
        long: list[Prefill] = []

        def is_late() -> bool:
            return time.monotonic() > until_s

        units: list[Encode | Prefill] = [*batch.encodes, *batch.prefills, *batch.long]
        for unit in units:
            sequence = unit.sequence
            if sequence in failed or sequence not in self._scheduler.running:
                continue
            if unit in batch.encodes[1:] and is_late():
                continue
            try:
                prefill, outcome = self._recovery.prepare(unit, is_late)
            except LookmError as error:
                failed.add(sequence)
                events.append(self._fail(sequence, str(error)))
            else:
                failed.update(outcome.too_large)
                events += self._events(outcome)
                if prefill is not None:
                    (long if unit in batch.long else ready).append(prefill)
        return Batch(batch.decodes, prefills=ready, long=long), events

    def _end_structured(self) -> list[TokenEvent]:
        """The ends of answers whose structure ends them between two tokens."""
        self.grammars.poll()
        ended = []
        for sequence in list(self._sequences.values()):
            event = self._postprocessor.end_structured(sequence)
            if event is not None:
                self._forget(sequence, park=event.finish == "stop")
                ended.append(event)
        return ended

    def _forget(self, sequence: SequenceState, *, park: bool = False) -> None:
        self._scheduler.remove(sequence, park=park)
        sequence.sampler.close()
        del self._sequences[sequence.request.id]

    def _fail(self, sequence: SequenceState, error: str) -> TokenEvent:
        """End a sequence alone."""
        self._forget(sequence)
        return self._postprocessor.end(sequence, "error", error=error)

    def _events(self, outcome: Outcome) -> list[TokenEvent]:
        """What was computed, and who did not fit."""
        events = [self._accept(sequence, choice) for sequence, choice in outcome.chosen]
        return events + [self._fail(sequence, TOO_LARGE) for sequence in outcome.too_large]

    def _accept(self, sequence: SequenceState, choice: SampledToken) -> TokenEvent:
        """Add a chosen token to its sequence, and forget the sequence where it ends."""
        event = self._postprocessor.accept(sequence, choice)
        self._totals.account_event(event, sequence)
        if event.finish is not None:
            self._forget(sequence, park=True)
        return event
