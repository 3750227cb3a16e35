"""An engine without torch: it answers every prompt with "word0 word1 word2 ...".

It ships with the server (`--model fake`), so that HTTP behaviour, load tests and the failure paths
run anywhere in milliseconds. It keeps every promise of `lookm.engine.Engine`: one terminal event a
request, cache reports on the first and last event, bounded queues, growing totals.

`fake:step_s=0.02,load_s=0.5` sets `FakeOptions`; the first prompt id may ask for one of `MISHAPS`.
"""

import dataclasses
import os
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from lookm.config import EngineConfig
from lookm.errors import ConfigError, ModelError, PromptTooLongError, QueueFullError, RequestError
from lookm.kept import KeptPositions
from lookm.progress import Progress
from lookm.types import CacheReport, EngineStats, FinishReason, ModelInfo, Request, Timing
from lookm.types import TokenEvent as Event

RAISE_ID = 900_001  # the step raises RuntimeError: the worker reports it and leaves
EXIT_ID = 900_002  # the process vanishes, as after an out-of-memory kill
REJECT_ID = 900_003  # `add` raises RequestError
ERROR_ID = 900_004  # the request ends with finish "error" after two words
STOP_ID = 900_005  # the model says its end of sequence after three words
SLOW_ID = 900_006  # every step with this request in it takes 50 ms
HANG_ID = 900_007  # the step never returns
SPIN_ID = 900_008  # nor does this one, and it computes
MISHAPS = frozenset((RAISE_ID, EXIT_ID, REJECT_ID, ERROR_ID, STOP_ID, SLOW_ID, HANG_ID, SPIN_ID))

NUM_LAYERS, NUM_KV_HEADS = 2, 2
KV_BYTES_PER_TOKEN = 1024
MAX_CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """How the fake behaves. `fail` is "" or the moment to break: "load" or "load-crash"."""

    step_s: float = 0.0
    load_s: float = 0.0
    fail: str = ""

    @classmethod
    def parse(cls, model: str) -> Self:
        """Read `fake:name=value,...`; raises `ConfigError` for what it does not know."""
        values: dict[str, float | str] = {}
        for pair in filter(None, model.removeprefix("fake").removeprefix(":").split(",")):
            name, _, value = pair.partition("=")
            if name not in {option.name for option in dataclasses.fields(cls)}:
                raise ConfigError(f"The fake engine has no option {name!r}.")
            try:
                values[name] = value if name == "fail" else float(value)
            except ValueError:
                raise ConfigError(f"The fake engine's {name} must be a number.") from None
        return cls(**values)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Sequence:
    request: Request
    added_s: float
    started_s: float = 0.0
    num_generated: int = 0
    text: str = ""
    shown: int = 0

    @property
    def mishap(self) -> int:
        ids = self.request.prompt_ids
        return ids[0] if ids and ids[0] in MISHAPS else 0


@dataclass(slots=True)
class _Totals:
    prompt_tokens_total: int = 0
    image_tokens_total: int = 0
    generated_tokens_total: int = 0
    decode_tokens_total: int = 0
    decode_s: float = 0.0
    image_cache_queries_total: int = 0


@dataclass(slots=True)
class FakeEngine:
    """See the module. Not thread-safe, like the real one."""

    config: EngineConfig
    options: FakeOptions
    _waiting: deque[_Sequence] = field(default_factory=deque)
    _running: dict[str, _Sequence] = field(default_factory=dict)
    _aborted: list[_Sequence] = field(default_factory=list)
    _totals: _Totals = field(default_factory=_Totals)
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Pretend to load; raises `ModelError` where the options ask for it."""
        options = FakeOptions.parse(config.model)
        time.sleep(options.load_s)
        if options.fail == "load":
            raise ModelError("The fake model cannot be loaded: remove fail=load from --model.")
        if options.fail == "load-crash":
            raise RuntimeError("the fake model crashed while loading")
        return cls(config, options)

    @property
    def info(self) -> ModelInfo:
        """A small, plausible model."""
        return ModelInfo(
            name="fake",
            max_context_tokens=self.config.max_context_tokens or MAX_CONTEXT_TOKENS,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
            page_tokens=self.config.page_tokens,
            capacity_bytes=self.config.kv_cache_bytes or 64 * 2**20,
            num_layers=NUM_LAYERS,
            dtype="float32",
            device="cpu",
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to say."""
        return bool(self._waiting or self._running or self._aborted)

    def add(self, request: Request) -> None:
        """Queue a request, or refuse it as the real engine would."""
        if request.prompt_ids[:1] == (REJECT_ID,):
            raise RequestError("The fake engine was asked to refuse this.", param="messages")
        limit = self.info.max_context_tokens
        if len(request.prompt_ids) + request.sampling.max_tokens > limit:
            raise PromptTooLongError(
                f"The prompt has {len(request.prompt_ids)} tokens and max_tokens is "
                f"{request.sampling.max_tokens}, but the model holds {limit}. Shorten either."
            )
        num_places = self.config.max_running - len(self._running)  # filled by the next step
        if len(self._waiting) >= num_places + self.config.max_waiting:
            message = f"{self.config.max_waiting} requests are waiting. Try again later."
            raise QueueFullError(message)
        self._waiting.append(_Sequence(request, time.monotonic()))

    def abort(self, request_id: str) -> None:
        """Stop a request; its terminal event comes with the next step."""
        gone = self._running.pop(request_id, None)
        if gone is None:
            gone = next((s for s in self._waiting if s.request.id == request_id), None)
            if gone is None:
                return
            self._waiting.remove(gone)
        self._aborted.append(gone)

    def step(self) -> list[Event]:
        """One more word for everyone running."""
        begun_s = time.monotonic()
        events = [self._end(sequence, "abort") for sequence in self._aborted]
        self._aborted.clear()
        while self._waiting and len(self._running) < self.config.max_running:
            self._start(self._waiting.popleft())
        mishaps = {sequence.mishap for sequence in self._running.values()}
        if RAISE_ID in mishaps:
            raise RuntimeError("the fake engine was asked to fail")
        if EXIT_ID in mishaps:
            os._exit(9)
        if HANG_ID in mishaps:
            time.sleep(3600)
        with self.progress.doing("step", 1):
            while SPIN_ID in mishaps:
                pass
            time.sleep(max(self.options.step_s, 0.05 if SLOW_ID in mishaps else 0.0))
        events += [self._advance(sequence) for sequence in list(self._running.values())]
        self._totals.decode_s += time.monotonic() - begun_s
        return events

    def stats(self) -> EngineStats:
        """The state between two steps."""
        reports = [cache_report(sequence.request) for sequence in self._running.values()]
        return EngineStats(
            capacity_bytes=self.info.capacity_bytes,
            used_bytes=sum(report.bytes for report in reports),
            full_bytes=sum(report.full_bytes for report in reports),
            running=len(self._running),
            waiting=len(self._waiting),
            **dataclasses.asdict(self._totals),
        )

    def _start(self, sequence: _Sequence) -> None:
        sequence.started_s = time.monotonic()
        self._running[sequence.request.id] = sequence
        self._totals.prompt_tokens_total += len(sequence.request.prompt_ids)
        self._totals.image_tokens_total += sum(i.num_tokens for i in sequence.request.images)
        self._totals.image_cache_queries_total += len(sequence.request.images)

    def _advance(self, sequence: _Sequence) -> Event:
        n = sequence.num_generated
        if sequence.mishap == ERROR_ID and n == 2:
            return self._end(sequence, "error")
        sequence.text += f" word{n}" if n else "word0"
        sequence.num_generated = n + 1
        self._totals.generated_tokens_total += 1
        self._totals.decode_tokens_total += bool(n)
        sampling = sequence.request.sampling
        found = [at for stop in sampling.stop if (at := sequence.text.find(stop)) >= 0]
        if found:
            sequence.text = sequence.text[: min(found)]
            return self._end(sequence, "stop", token_id=n)
        if sequence.mishap == STOP_ID and n == 2 and not sampling.ignore_eos:
            return self._end(sequence, "stop", token_id=n)
        if sequence.num_generated >= sampling.max_tokens:
            return self._end(sequence, "length", token_id=n)
        held_back = max((len(stop) - 1 for stop in sampling.stop), default=0)
        return Event(
            request_id=sequence.request.id,
            token_id=n,
            text=_show(sequence, len(sequence.text) - held_back),
            num_generated=sequence.num_generated,
            cache=cache_report(sequence.request) if n == 0 else None,
        )

    def _end(self, sequence: _Sequence, finish: FinishReason, token_id: int | None = None) -> Event:
        self._running.pop(sequence.request.id, None)
        now_s = time.monotonic()
        started_s = sequence.started_s or now_s
        return Event(
            request_id=sequence.request.id,
            token_id=token_id,
            text=_show(sequence, len(sequence.text)),
            num_generated=sequence.num_generated,
            finish=finish,
            cache=cache_report(sequence.request) if sequence.started_s else None,
            timing=Timing(queue_s=started_s - sequence.added_s, decode_s=now_s - started_s),
            error="The fake engine was asked to fail this request." if finish == "error" else None,
            positions=kept_positions(sequence.request) if finish in ("stop", "length") else None,
        )


def _show(sequence: _Sequence, upto: int) -> str:
    """The text between what was shown before and `upto`, which is then shown."""
    upto = max(upto, sequence.shown)
    text, sequence.shown = sequence.text[sequence.shown : upto], upto
    return text


def cache_report(request: Request) -> CacheReport:
    """What a real cache would hold if every policy kept exactly what it may."""
    tokens, policy = len(request.prompt_ids), request.policy
    assert not isinstance(policy, str), "the server has read it"
    kept = tokens
    if policy.method != "full":
        share = tokens if policy.keep is None else int(tokens * policy.keep)
        kept = max(1, min(tokens, policy.keep_tokens or share))
    return CacheReport(
        policy=replace(policy, keep_min=None),
        elastic=policy if policy.keep_min is not None else None,
        prompt_tokens=tokens,
        image_tokens=sum(image.num_tokens for image in request.images),
        kept_tokens=kept,
        evicted_tokens=tokens - kept,
        merged_tokens=0 if policy.merge == "none" else tokens - kept,
        bytes=kept * KV_BYTES_PER_TOKEN,
        full_bytes=tokens * KV_BYTES_PER_TOKEN,
        compressed=kept < tokens,
    )


def kept_positions(request: Request) -> KeptPositions | None:
    """As many as the report says, spread over the prompt; other ones in each head and layer."""
    if not request.positions:
        return None
    report = cache_report(request)
    tokens, kept = report.prompt_tokens, report.kept_tokens
    shift_LK1 = np.arange(NUM_LAYERS * NUM_KV_HEADS).reshape(NUM_LAYERS, NUM_KV_HEADS, 1)
    place_LKT = (np.arange(tokens) + shift_LK1) % tokens
    mask_LKT = (place_LKT + 1) * kept // tokens > place_LKT * kept // tokens
    return KeptPositions(
        num_tokens=tokens,
        kept=np.packbits(mask_LKT, axis=-1),
        merged=np.packbits(~mask_LKT, axis=-1) if report.merged_tokens else None,
    )
