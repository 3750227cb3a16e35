"""Every series this server exposes, in one table, and the registry that holds them.

A series is fed in one of two ways. `stat` reads it from the engine's statistics when it is scraped
(counters there are summed over every worker there has been, so they never go back). The others are
fed by name where things happen: `increase`, `observe`, `time`, `event`. No global state: each app
has its own registry. Labels are bounded: presets, finish reasons and error codes.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lookm.policy import PRESETS
from lookm.types import EngineStats, ModelInfo, TokenEvent
from server.api_errors import CODES
from server.decode_rate import RATE_SAMPLE_S, DecodeClock, DecodeRate
from server.longest_step import LongestStep
from server.vllm_names import with_vllm_names
from server.worker.worker_errors import CAUSES, Cause

# vLLM's buckets, so that its dashboards read ours.
LATENCY_S = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
TOKEN_GAP_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
STEP_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1, 2.5, 5, 10, 30)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
KEPT_RATIO = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

FINISH_REASONS = ("stop", "length", "abort", "error")
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Series:
    """One row of the table. `stat` reads it from the engine; None: it is fed by name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    stat: Callable[["EngineView"], float] | None = None


SERIES: tuple[Series, ...] = (
    Series("lookm_kv_cache_capacity_bytes", "gauge", "Bytes of K and V the page pool can hold.",
           stat=lambda e: e.totals.capacity_bytes),
    Series("lookm_kv_cache_used_bytes", "gauge", "Bytes of K and V held now.",
           stat=lambda e: e.totals.used_bytes),
    Series("lookm_kv_cache_parked_bytes", "gauge",
           "Bytes of K and V of conversations between turns; given to whoever needs them.",
           stat=lambda e: e.totals.parked_bytes),
    Series("lookm_parked_conversations", "gauge", "Conversations between two turns.",
           stat=lambda e: e.totals.parked_conversations),
    Series("lookm_parked_hit_tokens_total", "counter", "Prompt tokens that were still in the pool.",
           stat=lambda e: e.totals.parked_hit_tokens_total),
    Series("lookm_kv_cache_saved_bytes", "gauge",
           "What running requests would hold at full cache, minus what they hold.",
           stat=lambda e: max(0, e.totals.full_bytes - e.totals.used_bytes)),
    Series("lookm_kv_cache_usage_ratio", "gauge", "Used part of the page pool, 0 to 1.",
           stat=lambda e: e.totals.used_bytes / max(1, e.totals.capacity_bytes)),
    Series("lookm_kv_kept_ratio", "histogram", "Part of a prompt's tokens that was kept.",
           ("method",), KEPT_RATIO),
    Series("lookm_kv_evicted_tokens_total", "counter",
           "Prompt tokens evicted, mean over layers.", ("method",)),
    Series("lookm_kv_merged_tokens_total", "counter",
           "Evicted prompt tokens merged into kept ones, mean over layers.", ("method",)),
    Series("lookm_decode_tokens_per_second", "gauge",
           "Tokens decoded per second of decoding, all requests together, last 10 s."),
    Series("lookm_generation_tokens_total", "counter", "Tokens generated.", ("method",)),
    Series("lookm_prompt_tokens_total", "counter", "Prompt tokens prefilled, images included.",
           stat=lambda e: e.totals.prompt_tokens_total),
    Series("lookm_image_tokens_total", "counter", "Prompt tokens that were image tokens.",
           stat=lambda e: e.totals.image_tokens_total),
    Series("lookm_step_seconds", "histogram", "One step of the engine: streams wait for it.",
           (), STEP_S),
    Series("lookm_longest_step_seconds", "gauge",
           "The longest step of the last minute: no stream waited longer for its next token."),
    Series("lookm_requests_running", "gauge", "Requests the engine works on.",
           stat=lambda e: e.totals.running),
    Series("lookm_requests_waiting", "gauge",
           "Requests that wait for the engine, or for a place of their API key."),
    Series("lookm_preemptions_total", "counter", "Requests put back to waiting for pages.",
           stat=lambda e: e.totals.preemptions_total),
    Series("lookm_request_success_total", "counter", "Requests that ended, by how.",
           ("finish_reason",)),
    Series("lookm_requests_rejected_total", "counter", "Requests answered with an error, by code.",
           ("reason",)),
    Series("lookm_time_to_first_token_seconds", "histogram",
           "From the arrival of a request to its first token.", (), FIRST_TOKEN_S),
    Series("lookm_inter_token_latency_seconds", "histogram",
           "Between two tokens of one request.", (), TOKEN_GAP_S),
    Series("lookm_e2e_request_latency_seconds", "histogram",
           "From the arrival of a request to its end.", (), LATENCY_S),
    Series("lookm_request_queue_time_seconds", "histogram", "Waiting in the engine.",
           (), LATENCY_S),
    Series("lookm_request_prefill_time_seconds", "histogram", "Prefill of one prompt.",
           (), LATENCY_S),
    Series("lookm_request_compress_time_seconds", "histogram", "Compression of one prompt's cache.",
           (), FIRST_TOKEN_S),
    Series("lookm_request_decode_time_seconds", "histogram", "Decoding of one answer.",
           (), LATENCY_S),
    Series("lookm_media_fetch_seconds", "histogram", "Download of one image.", (), FIRST_TOKEN_S),
    Series("lookm_media_decode_seconds", "histogram",
           "Decoding of one image, drawing of one page.", (), FIRST_TOKEN_S),
    Series("lookm_media_preprocess_seconds", "histogram",
           "Preprocessing of one image, waiting for a thread included.", (), FIRST_TOKEN_S),
    Series("lookm_images_refused_total", "counter", "Images that were refused, by code.",
           ("reason",)),
    Series("lookm_media_held_bytes", "gauge",
           "Bytes that decoding may be taking now, downloads that wait for it included."),
    Series("lookm_files_held_bytes", "gauge", "Bytes of uploaded files."),
    Series("lookm_bodies_held_bytes", "gauge", "Bytes of bodies being received or prepared."),
    Series("lookm_responses_held_bytes", "gauge",
           "Bytes of responses kept for follow-ups (--response-store-memory)."),
    Series("lookm_connections", "gauge", "Connections that are open."),
    Series("lookm_connections_refused_total", "counter",
           "Connections closed because there were too many, or for want of descriptors."),
    Series("lookm_process_resident_bytes", "gauge", "Memory of the API process."),
    Series("lookm_memory_used_ratio", "gauge",
           "Used part of the memory that this machine or container has, 0 to 1."),
    Series("lookm_vision_encode_seconds", "histogram", "Encoding of one request's images.",
           (), FIRST_TOKEN_S),
    Series("lookm_prompt_store_query_tokens_total", "counter", "Prompt tokens looked up in it.",
           stat=lambda e: e.totals.prompt_store_query_tokens_total),
    Series("lookm_prompt_store_hit_tokens_total", "counter", "Prompt tokens taken from the store.",
           stat=lambda e: e.totals.prompt_store_hit_tokens_total),
    Series("lookm_prompt_store_bytes", "gauge", "Host memory that the prompt store holds.",
           stat=lambda e: e.totals.prompt_store_bytes),
    Series("lookm_prompt_store_evictions_total", "counter", "Blocks dropped from the store.",
           stat=lambda e: e.totals.prompt_store_evictions_total),
    Series("lookm_prompt_store_load_seconds_total", "counter", "Time spent reading from the store.",
           stat=lambda e: e.totals.prompt_store_load_s),
    Series("lookm_prompt_store_save_seconds_total", "counter", "Time spent writing to the store.",
           stat=lambda e: e.totals.prompt_store_save_s),
    Series("lookm_image_cache_queries_total", "counter", "Images looked up in the feature cache.",
           stat=lambda e: e.totals.image_cache_queries_total),
    Series("lookm_image_cache_hits_total", "counter", "Images found in the feature cache.",
           stat=lambda e: e.totals.image_cache_hits_total),
    Series("lookm_event_loop_lag_seconds", "histogram",
           "How late the API process's event loop comes to what is due, sampled every 0.1 s.",
           (), LAG_S),
    Series("lookm_worker_restarts_total", "counter", "Engine processes replaced after they died.",
           stat=lambda e: e.restarts),
    Series("lookm_worker_failures_total", "counter", "Engine processes that died, by what of.",
           ("cause",)),
    Series("lookm_worker_ready", "gauge", "1 while the engine can take requests, else 0.",
           stat=lambda e: float(e.ready)),
    Series("lookm_build_info", "gauge", "Always 1; the labels tell what runs.",
           ("version", "model", "dtype", "device")),
    Series("lookm_engine_config_info", "gauge", "Always 1; the labels tell the cache's shape.",
           ("page_tokens", "kv_bytes_per_token", "num_layers", "max_context_tokens")),
)  # fmt: skip

LABEL_VALUES = {
    "method": (*PRESETS, OTHER),
    "finish_reason": FINISH_REASONS,
    "reason": (*CODES, OTHER),
    "cause": CAUSES,
}


Observer = Callable[[Sequence[TokenEvent], EngineStats], None]


class EngineView(Protocol):
    """What is read from the engine when the series are scraped."""

    info: ModelInfo | None
    restarts: int

    @property
    def ready(self) -> bool: ...
    @property
    def totals(self) -> EngineStats: ...


class Metrics:
    """The registry of one app, fed by name and by its engine."""

    def __init__(self, engine: EngineView) -> None:
        self.registry = CollectorRegistry()
        self._engine = engine
        self._vllm_model: str | None = None
        self._clock = DecodeClock()
        self._rate = DecodeRate()
        self._longest_step = LongestStep()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for series in SERIES:
            if series.stat is None:
                self._register(series)
        self.registry.register(_EngineCollector(engine))

    def increase(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        counter = self._counters[name]
        (counter.labels(**_bounded(labels)) if labels else counter).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        histogram = self._histograms[name]
        (histogram.labels(**_bounded(labels)) if labels else histogram).observe(value)

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Read a gauge from `value` whenever the series are scraped."""
        self._gauges[name].set_function(value)

    def describe_build(self, **labels: str) -> None:
        """Set `lookm_build_info`, once the model is known."""
        self._gauges["lookm_build_info"].labels(**labels).set(1)

    def add_vllm_names(self, model: str) -> None:
        """Expose the core series under vLLM's names, too."""
        self._vllm_model = model

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Observe how long the body took, if it succeeded."""
        begun_s = time.perf_counter()
        yield
        self.observe(name, time.perf_counter() - begun_s)

    def on_step(self, _: Sequence[TokenEvent], stats: EngineStats) -> None:
        """Observer of the engine's steps (`EngineClient.observers`)."""
        now_s = time.monotonic()
        self._clock.step(now_s, stats)
        if stats.last_step_seconds:
            self.observe("lookm_step_seconds", stats.last_step_seconds)
            self._longest_step.add(now_s, stats.last_step_seconds)
        if now_s - self._rate.sampled_s >= RATE_SAMPLE_S:
            self._sample_rate(now_s)

    def on_worker_failure(self, cause: Cause) -> None:
        """Observer of the engine's deaths (`EngineClient.failure_observers`)."""
        self.increase("lookm_worker_failures_total", cause=cause)

    def expose(self) -> bytes:
        """All series in Prometheus' text format, without the creation times nobody plots."""
        self._sample_rate(time.monotonic())
        self._gauges["lookm_decode_tokens_per_second"].set(self._rate.tokens_per_s())
        longest_s = self._longest_step.seconds(time.monotonic())
        self._gauges["lookm_longest_step_seconds"].set(longest_s)
        self._describe_engine()
        return generate_latest(_Families(self._families()))

    def _sample_rate(self, now_s: float) -> None:
        totals = dataclasses.replace(self._engine.totals, decode_s=self._clock.decoding_s)
        self._rate.sample(now_s, totals)

    def _describe_engine(self) -> None:
        """Set `lookm_engine_config_info`, once the engine is known."""
        if (info := self._engine.info) is not None:
            gauge = self._gauges["lookm_engine_config_info"]
            labels = next(s.labels for s in SERIES if s.name == "lookm_engine_config_info")
            gauge.labels(*(str(getattr(info, label)) for label in labels)).set(1)

    def _families(self) -> Iterator[Metric]:
        families = _without_created(self.registry.collect())
        info = self._engine.info
        if self._vllm_model is not None and info is not None:
            return with_vllm_names(families, self._vllm_model, info)
        return families

    def _register(self, series: Series) -> None:
        name, about = series.name, (series.name, series.help, series.labels)
        if series.kind == "gauge":
            self._gauges[name] = Gauge(*about, registry=self.registry)
            return
        counted: Histogram | Counter
        if series.kind == "histogram":
            counted = Histogram(*about, registry=self.registry, buckets=series.buckets)
            self._histograms[name] = counted
        else:
            counted = self._counters[name] = Counter(*about, registry=self.registry)
        for label in series.labels:  # one at most. All begin at zero: a rate sees the first event
            for value in LABEL_VALUES[label]:
                counted.labels(value)


class _EngineCollector(Collector):
    """Reads the engine's series at the moment of the scrape."""

    def __init__(self, engine: EngineView) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        for series in SERIES:
            if series.stat is not None:
                kind = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
                yield kind(series.name, series.help, value=series.stat(self._engine))


class _Families(CollectorRegistry):
    """Families that are at hand, in the form that `generate_latest` takes."""

    def __init__(self, families: Iterator[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families


def _without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    for family in families:
        family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        yield family


def _bounded(labels: dict[str, str]) -> dict[str, str]:
    return {name: value if value in LABEL_VALUES[name] else OTHER for name, value in labels.items()}
