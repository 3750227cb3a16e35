"""The registry that holds the series of `series`, and what feeds them.

A series is fed in one of two ways. `stat` reads it from the engine's statistics when it is scraped
(counters there are summed over every worker there has been, so they never go back). The others are
fed by name where things happen: `increase`, `observe`, `time`, `event`. No global state: each app
has its own registry.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lookm.types import EngineStats, TokenEvent
from server.decode_rate import RATE_SAMPLE_S, DecodeClock, DecodeRate
from server.exposition import Families, without_created
from server.longest_step import LongestStep
from server.series import LABEL_VALUES, OTHER, SERIES, EngineView, Series
from server.vllm_names import with_vllm_names
from server.worker.worker_errors import Cause

Observer = Callable[[Sequence[TokenEvent], EngineStats], None]


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

    def know(self, label: str, values: Iterable[str]) -> None:
        """Begin at zero for values of a label that are the operator's, not ours."""
        for series in SERIES:
            if series.labels == (label,):
                for value in values:
                    self._counters[series.name].labels(value)

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
        return generate_latest(Families(self._families()))

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
        families = without_created(self.registry.collect())
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
            for value in LABEL_VALUES.get(label, ()):
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


def _bounded(labels: dict[str, str]) -> dict[str, str]:
    """Names of keys are the operator's, and as many as there are."""
    return {
        name: value if value in LABEL_VALUES.get(name, (value,)) else OTHER
        for name, value in labels.items()
    }
