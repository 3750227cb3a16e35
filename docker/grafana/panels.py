"""What the two dashboards show: every panel's question, its queries, its unit and what it tells.

Plain data, read by `build.py`. Every query ends in zero where there is nothing yet, so that a
dashboard opened at a fresh start shows zeros and not "no data".
"""

from dataclasses import dataclass
from typing import Literal

INSTANCE = 'instance=~"$instance"'
METHOD = f'{INSTANCE}, method=~"$method"'
WINDOW = "[$__rate_interval]"
OR_ZERO = " or on() vector(0)"
TOKENS_PER_S = "suffix: tok/s"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `width` in Grafana's 24 columns; the unit is one of Grafana's ids."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["stat", "lines", "stack"] = "lines"
    width: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that are read together: what is felt beside why."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def total(name: str) -> str:
    """A gauge, summed over the servers."""
    return f"sum({name}{{{INSTANCE}}}){OR_ZERO}"


def per_second(name: str, by: str = "") -> str:
    """A counter's growth, summed over the servers, by a label or altogether."""
    labels = METHOD if by == "method" else INSTANCE
    grouping = f"sum by ({by}) " if by else "sum"
    return f"{grouping}(rate({name}{{{labels}}}{WINDOW})){OR_ZERO}"


def quantile(name: str, share: float) -> str:
    """A histogram's quantile; 0 where nothing was observed (a quantile of nothing is NaN)."""
    rates = f"sum by (le) (rate({name}_bucket{{{INSTANCE}}}{WINDOW}))"
    return f"(histogram_quantile({share}, {rates}) >= 0){OR_ZERO}"


def mean(name: str, by: str = "") -> str:
    """A histogram's mean; 0 where nothing was observed."""
    labels = METHOD if by else INSTANCE
    grouping = f"sum by ({by}) " if by else "sum"
    sums, counts = (
        f"{grouping}(rate({name}_{part}{{{labels}}}{WINDOW}))" for part in ("sum", "count")
    )
    return f"({sums} / {counts} >= 0){OR_ZERO}"


def quantiles(name: str) -> tuple[Query, ...]:
    """Median, and what 1 in 20 exceeds."""
    return (Query(quantile(name, 0.5), "median"), Query(quantile(name, 0.95), "p95"))


def _fit(held: str) -> str:
    """How many requests like those running now the pools hold, where those take `held` bytes."""
    capacity = f"sum(lookm_kv_cache_capacity_bytes{{{INSTANCE}}})"
    running = f"sum(lookm_requests_running{{{INSTANCE}}})"
    return f"({capacity} * {running} / {held} >= 0 < Inf){OR_ZERO}"


USED = f"sum(lookm_kv_cache_used_bytes{{{INSTANCE}}})"
SAVED = f"sum(lookm_kv_cache_saved_bytes{{{INSTANCE}}})"
FITS = (
    Query(_fit(USED), "as they are"),
    Query(_fit(f"({USED} + {SAVED})"), "at full cache"),
)

CACHE = Board(
    "lookm-cache",
    "lookm: Cache",
    "What the KV cache holds, and what compression saves.",
    (
    Row("Now", (
        Panel("Capacity", "bytes", "Bytes of K and V the page pools can hold.",
              (Query(total("lookm_kv_cache_capacity_bytes"), "capacity"),), "stat", 4),
        Panel("Used", "bytes", "Bytes of K and V in pages that are held now.",
              (Query(total("lookm_kv_cache_used_bytes"), "used"),), "stat", 4),
        Panel("Saved", "bytes",
              "What the running requests would hold at full cache, minus what they hold.",
              (Query(total("lookm_kv_cache_saved_bytes"), "saved"),), "stat", 4),
        Panel("Pool in use", "percentunit",
              "Used part of the fullest server's pool. Above 90 % for long, new requests wait.",
              (Query(f"max(lookm_kv_cache_usage_ratio{{{INSTANCE}}}){OR_ZERO}", "in use"),),
              "stat", 4),
        Panel("Requests that fit", "none",
              "How many requests like those running now the pool would hold: as they are, and had "
              "each kept its full cache. 0 while nothing runs.", FITS, "stat", 8),
    )),
    Row("The pool: what it holds, and what becomes of those it cannot hold", (
        Panel("KV pool", "bytes",
              "Held now, and what the same requests would hold at full cache. Where the second is "
              "above the capacity, compression is what lets them run together.",
              (Query(total("lookm_kv_cache_used_bytes"), "used"),
               Query(total("lookm_kv_cache_parked_bytes"), "parked"),
               Query(f"{USED} + {SAVED}{OR_ZERO}", "at full cache"),
               Query(total("lookm_kv_cache_capacity_bytes"), "capacity")), width=12),
        Panel("Requests that fit, over time", "none",
              "The same as above, over time: the distance between the lines is what compression "
              "buys.", FITS, width=12),
        Panel("Taken by elastic requests", "percentunit",
              "Mean fraction that requests with a range took, by method, for prompts prefilled in "
              "the window. It falls as the pool fills. 0 where there are none.",
              (Query(mean("lookm_elastic_keep_ratio", "method"), "{{method}}"),), width=12),
        Panel("Preemptions", "reqps",
              "Running requests put back to waiting because the pool was full, per second. Each "
              "is prefilled again: steady ones mean that the pool is too small.",
              (Query(per_second("lookm_preemptions_total"), "preempted"),), width=12),
    )),
    Row("What policies do with prompts", (
        Panel("Kept, by method", "percentunit",
              "Mean part of a prompt's tokens that was kept, for prompts prefilled in the window. "
              "Above what was asked where the policy protects text and prompts hold much of it.",
              (Query(mean("lookm_kv_kept_ratio", "method"), "{{method}}"),)),
        Panel("Evicted tokens", TOKENS_PER_S,
              "Prompt tokens evicted per second (mean over layers), by method.",
              (Query(per_second("lookm_kv_evicted_tokens_total", "method"), "{{method}}"),),
              "stack"),
        Panel("Merged tokens", TOKENS_PER_S,
              "Evicted tokens per second whose content was merged into kept ones, by method. Zero "
              "for methods that only evict.",
              (Query(per_second("lookm_kv_merged_tokens_total", "method"), "{{method}}"),),
              "stack"),
    )),
    Row("What need not be computed again", (
        Panel("Prompt tokens", TOKENS_PER_S,
              "Prompt tokens prefilled per second, and those of them that are image tokens.",
              (Query(per_second("lookm_prompt_tokens_total"), "all"),
               Query(per_second("lookm_image_tokens_total"), "image"))),
        Panel("Prompts known", "percentunit",
              "Part of the prompts' tokens that earlier turns had computed, and that came from the "
              "prompt store.",
              (Query(f"(sum(rate(lookm_prompt_store_hit_tokens_total{{{INSTANCE}}}{WINDOW}))"
                     f" / sum(rate(lookm_prompt_store_query_tokens_total{{{INSTANCE}}}{WINDOW}))"
                     f" >= 0){OR_ZERO}", "known"),)),
        Panel("Conversations gone on with", TOKENS_PER_S,
              "Prompt tokens per second whose rows were still in the pool from the turn before.",
              (Query(per_second("lookm_parked_hit_tokens_total"), "taken over"),)),
        Panel("Prompt store", "bytes", "Host memory that the prompt store holds.",
              (Query(total("lookm_prompt_store_bytes"), "held"),), width=12),
        Panel("Image cache", "percentunit",
              "Part of the images whose vision features were found and not computed again.",
              (Query(f"(sum(rate(lookm_image_cache_hits_total{{{INSTANCE}}}{WINDOW}))"
                     f" / sum(rate(lookm_image_cache_queries_total{{{INSTANCE}}}{WINDOW}))"
                     f" >= 0){OR_ZERO}", "found"),), width=12),
    )),
    ),
)  # fmt: skip

STAGES = ("queue", "prefill", "compress", "decode")
MEDIA = (
    ("fetch", "lookm_media_fetch_seconds"),
    ("decode", "lookm_media_decode_seconds"),
    ("preprocess", "lookm_media_preprocess_seconds"),
    ("encode", "lookm_vision_encode_seconds"),
)

SERVING = Board(
    "lookm-serving",
    "lookm: Serving",
    "How fast requests are answered, and how they end.",
    (
    Row("Now", (
        Panel("Decode", TOKENS_PER_S,
              "Tokens decoded per second of decoding, all requests together, over the last 10 s.",
              (Query(total("lookm_decode_tokens_per_second"), "tokens/s"),), "stat", 4),
        Panel("Running", "none", "Requests the engines work on.",
              (Query(total("lookm_requests_running"), "running"),), "stat", 4),
        Panel("Waiting", "none", "Requests that wait for the engines.",
              (Query(total("lookm_requests_waiting"), "waiting"),), "stat", 4),
        Panel("First token, p95", "s", "1 in 20 requests waits longer for its first token.",
              (Query(quantile("lookm_time_to_first_token_seconds", 0.95), "p95"),), "stat", 4),
        Panel("Refused", "reqps", "Requests answered with an error, per second, all codes.",
              (Query(per_second("lookm_requests_rejected_total"), "refused"),), "stat", 4),
        Panel("Worker restarts", "none",
              "Engine processes that died and were replaced, in the window shown.",
              (Query(f"sum(increase(lookm_worker_restarts_total{{{INSTANCE}}}[$__range])){OR_ZERO}",
                     "restarts"),), "stat", 4),
    )),
    Row("What users feel", (
        Panel("Time to first token", "s",
              "From a request's arrival to its first token: images, waiting, prefill, compression.",
              quantiles("lookm_time_to_first_token_seconds")),
        Panel("Between two tokens", "s",
              "What a reader of a stream feels. Rises with the number of running requests.",
              quantiles("lookm_inter_token_latency_seconds")),
        Panel("Whole request", "s", "From a request's arrival to its end; depends on its length.",
              quantiles("lookm_e2e_request_latency_seconds")),
    )),
    Row("Why: who else is there, and what everybody waits for", (
        Panel("Requests", "none",
              "Running and waiting. Waiting that grows while running stands still: the server is "
              "full.",
              (Query(total("lookm_requests_running"), "running"),
               Query(total("lookm_requests_waiting"), "waiting"))),
        Panel("Engine steps", "s",
              "Every stream waits for the step that runs. Longest: the worst gap that a reader had "
              "in the last minute. Above --max-step-ms: a prompt that cannot pause, or a machine "
              "that is busy with something else.",
              (*quantiles("lookm_step_seconds"),
               Query(f"max(lookm_longest_step_seconds{{{INSTANCE}}}){OR_ZERO}", "longest"))),
        Panel("Event loop, late by", "s",
              "What everything the API process does waits for; above 0.05 s one client's work "
              "holds up the others.",
              quantiles("lookm_event_loop_lag_seconds")),
    )),
    Row("Why: where a request's time goes", (
        Panel("Where the time goes", "s",
              "Mean seconds of a request in each stage inside the engine. Much queue: too little "
              "pool or too many requests. Much prefill: long prompts. Compress is what "
              "compression itself costs.",
              tuple(Query(mean(f"lookm_request_{stage}_time_seconds"), stage) for stage in STAGES),
              "stack"),
        Panel("Slowest stages, p95", "s", "What 1 in 20 requests exceeds in each stage.",
              tuple(Query(quantile(f"lookm_request_{stage}_time_seconds", 0.95), stage)
                    for stage in STAGES)),
        Panel("Images", "s",
              "Mean seconds of one image's download, decoding and preprocessing (waiting for a "
              "thread included), and of encoding one request's images.",
              tuple(Query(mean(name), stage) for stage, name in MEDIA)),
    )),
    Row("What is done", (
        Panel("Generated tokens", TOKENS_PER_S,
              "Tokens generated per second of wall time, by cache method.",
              (Query(per_second("lookm_generation_tokens_total", "method"), "{{method}}"),),
              "stack", 12),
        Panel("How requests end", "reqps",
              "stop: the model was done. length: max_tokens. abort: the client left. error: the "
              "engine failed.",
              (Query(per_second("lookm_request_success_total", "finish_reason"),
                     "{{finish_reason}}"),), "stack", 12),
    )),
    Row("What is refused, and what fails", (
        Panel("Refused, by code", "reqps",
              "Requests answered with an error, by its code. queue_full: too much load. "
              "engine_unavailable, engine_failed: look at the worker's log.",
              (Query(per_second("lookm_requests_rejected_total", "reason"), "{{reason}}"),),
              "stack"),
        Panel("Images and connections refused", "reqps",
              "Images by the code of their error; connections closed because there were too many.",
              (Query(per_second("lookm_images_refused_total", "reason"), "{{reason}}"),
               Query(per_second("lookm_connections_refused_total"), "connections"))),
        Panel("Memory of the API", "bytes",
              "What the API process has, and what bodies, decoding and stored responses hold of "
              "the memory now. What the first two hold comes back within a minute of what took it.",
              (Query(total("lookm_process_resident_bytes"), "process"),
               Query(total("lookm_bodies_held_bytes"), "bodies"),
               Query(total("lookm_media_held_bytes"), "decoding"),
               Query(total("lookm_responses_held_bytes"), "responses"))),
        Panel("Engines ready", "none",
              "Servers whose engine can take requests. Below the number of servers: one is "
              "starting, being replaced or stopping; /readyz says which.",
              (Query(total("lookm_worker_ready"), "ready"),), width=12),
        Panel("Engine failures, by cause", "none",
              "Engine processes that died, in the window shown. failed: the engine raised. "
              "crashed, out_of_memory: the system ended it. hung, stopped: no step ended, it did "
              "not stir. killed: somebody did. load: it was never ready.",
              (Query(f"sum by (cause) (increase(lookm_worker_failures_total{{{INSTANCE}}}"
                     f"[$__range])){OR_ZERO}", "{{cause}}"),), "stack", 12),
    )),
    ),
)  # fmt: skip

BOARDS = (CACHE, SERVING)
