"""Every series this server exposes, in one table; `metrics` holds and feeds them.

Labels are bounded: presets, finish reasons and error codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from lookm.policy import PRESETS
from lookm.types import EngineStats, ModelInfo
from server.api_errors import CODES
from server.worker.worker_errors import CAUSES

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


class EngineView(Protocol):
    """What is read from the engine when the series are scraped."""

    info: ModelInfo | None
    restarts: int

    @property
    def ready(self) -> bool: ...
    @property
    def totals(self) -> EngineStats: ...


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
    Series("lookm_elastic_keep_ratio", "histogram",
           "Fraction that elastic requests took; the smaller, the fuller the pool.",
           ("method",), KEPT_RATIO),
    Series("lookm_elastic_requests_total", "counter",
           "Elastic requests, by whether they took the most they asked for, less, or the least.",
           ("taken",)),
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
    Series("lookm_key_requests_total", "counter",
           "POST requests by the name of their API key; refused ones, too.", ("key",)),
    Series("lookm_key_refused_total", "counter",
           "Requests refused because their key had reached its requests or tokens a minute.",
           ("key",)),
    Series("lookm_key_prompt_tokens_total", "counter",
           "Tokens of prompts that were answered, by the name of the API key.", ("key",)),
    Series("lookm_key_generated_tokens_total", "counter",
           "Tokens of answers, by the name of the API key.", ("key",)),
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
           ("page_tokens", "kv_bytes_per_token", "kv_cache_dtype", "num_layers",
            "max_context_tokens")),
)  # fmt: skip

LABEL_VALUES = {
    "method": (*PRESETS, OTHER),
    "finish_reason": FINISH_REASONS,
    "reason": (*CODES, OTHER),
    "taken": ("most", "less", "least"),
    "cause": CAUSES,
}
