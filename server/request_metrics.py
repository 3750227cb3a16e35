"""Measures one request, from its arrival to its end, as the API process sees it.

First token, gaps and end are timed here; the stages inside the engine come with the terminal event.
"""

import time

from lookm.types import CacheReport, TokenEvent
from server.metrics import Metrics

STAGES = (
    ("lookm_request_queue_time_seconds", "queue_s"),
    ("lookm_request_prefill_time_seconds", "prefill_s"),
    ("lookm_request_compress_time_seconds", "compress_s"),
    ("lookm_request_decode_time_seconds", "decode_s"),
)


class RequestMetrics:
    """Feed it every event of a request, then `close` it."""

    def __init__(self, metrics: Metrics, arrived_s: float) -> None:
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._last_token_s: float | None = None
        self._num_generated = 0
        self._method = ""
        self._accepted = False
        self._ended = False

    def event(self, event: TokenEvent) -> None:
        """Account for one event."""
        self._accepted = True
        if event.cache is not None and not self._method:
            self._cache(event.cache)
        if event.token_id is not None:
            self._token(event.num_generated)
        if event.finish is not None:
            self._end(event)

    def failed(self) -> None:
        """The request ended with an exception; before its first event it counts as rejected."""
        if self._accepted and not self._ended:
            self._metrics.increase("lookm_request_success_total", finish_reason="error")
        self._ended = True

    def close(self) -> None:
        """The request is over; without a terminal event or a failure, its client left."""
        if not self._ended:
            self._metrics.increase("lookm_request_success_total", finish_reason="abort")
        self._ended = True

    def _cache(self, report: CacheReport) -> None:
        self._method = method = report.policy.method
        ratio = report.kept_tokens / max(1, report.prompt_tokens)
        self._metrics.observe("lookm_kv_kept_ratio", ratio, method=method)
        self._metrics.increase(
            "lookm_kv_evicted_tokens_total", report.evicted_tokens, method=method
        )
        self._metrics.increase("lookm_kv_merged_tokens_total", report.merged_tokens, method=method)
        if report.elastic is not None:
            keep = report.policy.keep or 0.0
            ends = {report.elastic.keep_min: "least", report.elastic.keep: "most"}
            self._metrics.observe("lookm_elastic_keep_ratio", keep, method=method)
            self._metrics.increase("lookm_elastic_requests_total", taken=ends.get(keep, "less"))

    def _token(self, num_generated: int) -> None:
        now_s = time.perf_counter()
        if self._last_token_s is None:
            self._metrics.observe("lookm_time_to_first_token_seconds", now_s - self._arrived_s)
        else:
            gap_s = now_s - self._last_token_s
            self._metrics.observe("lookm_inter_token_latency_seconds", gap_s)
        self._last_token_s = now_s
        new_tokens = num_generated - self._num_generated
        self._num_generated = num_generated
        self._metrics.increase("lookm_generation_tokens_total", new_tokens, method=self._method)

    def _end(self, event: TokenEvent) -> None:
        self._ended = True
        self._metrics.increase("lookm_request_success_total", finish_reason=str(event.finish))
        now_s = time.perf_counter()
        self._metrics.observe("lookm_e2e_request_latency_seconds", now_s - self._arrived_s)
        if event.timing is None:
            return
        for name, stage in STAGES:
            self._metrics.observe(name, getattr(event.timing, stage))
        if event.cache is not None and event.cache.image_tokens:
            self._metrics.observe("lookm_vision_encode_seconds", event.timing.encode_s)
