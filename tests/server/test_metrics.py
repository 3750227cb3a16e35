"""The series: all there, well formed, growing only, back to zero, with bounded labels."""

from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from lookm.policy import PRESETS
from lookm.types import CachePolicy, CacheReport, EngineStats, Timing, TokenEvent
from server.api_errors import CODES
from server.decode_rate import RATE_WINDOW_S, DecodeRate
from server.metrics import Metrics
from server.request_metrics import RequestMetrics
from server.series import SERIES
from server.vllm_names import ALIASES
from tests.server.requests import CHAT, INFO, chat, image

pytestmark = pytest.mark.anyio

# The contract with dashboards and alerts: renaming one of these breaks them.
PROMISED = [
    "lookm_kv_cache_capacity_bytes",
    "lookm_kv_cache_used_bytes",
    "lookm_kv_cache_saved_bytes",
    "lookm_kv_cache_usage_ratio",
    "lookm_kv_kept_ratio",
    "lookm_kv_evicted_tokens_total",
    "lookm_kv_merged_tokens_total",
    "lookm_decode_tokens_per_second",
    "lookm_generation_tokens_total",
    "lookm_prompt_tokens_total",
    "lookm_image_tokens_total",
    "lookm_requests_running",
    "lookm_requests_waiting",
    "lookm_request_success_total",
    "lookm_requests_rejected_total",
    "lookm_time_to_first_token_seconds",
    "lookm_inter_token_latency_seconds",
    "lookm_e2e_request_latency_seconds",
    "lookm_request_queue_time_seconds",
    "lookm_request_prefill_time_seconds",
    "lookm_request_compress_time_seconds",
    "lookm_request_decode_time_seconds",
    "lookm_media_fetch_seconds",
    "lookm_media_decode_seconds",
    "lookm_media_preprocess_seconds",
    "lookm_vision_encode_seconds",
    "lookm_image_cache_queries_total",
    "lookm_image_cache_hits_total",
    "lookm_build_info",
]

STATS = EngineStats(1000, 250, 1000, 2, 3, 10, 8, 20, 18, 2.0, 1, 5, 4, 0.5)


def values(exposition: str) -> dict[str, float]:
    """Samples by name and labels, as they are written."""
    found = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def metrics_of(stats: EngineStats) -> Metrics:
    return Metrics(SimpleNamespace(totals=stats, restarts=0, ready=True, info=INFO))


def test_every_promised_series_is_declared_once_and_exposed() -> None:
    names = [series.name for series in SERIES]
    assert len(names) == len(set(names))
    assert set(PROMISED) <= set(names)
    exposed = metrics_of(STATS).expose().decode()
    for series in SERIES:
        family = series.name.removesuffix("_total") if series.kind == "counter" else series.name
        assert f"# TYPE {family}" in exposed
        assert (series.kind == "histogram") == bool(series.buckets)
        assert (series.kind == "counter") == series.name.endswith("_total")
    assert "_created" not in exposed


def test_the_engines_numbers_arrive() -> None:
    seen = values(metrics_of(STATS).expose().decode())
    assert seen["lookm_kv_cache_used_bytes"] == 250
    assert seen["lookm_kv_cache_saved_bytes"] == 750
    assert seen["lookm_kv_cache_usage_ratio"] == 0.25
    assert seen["lookm_requests_running"] == 2
    assert seen["lookm_prompt_tokens_total"] == 10
    assert seen["lookm_image_cache_hits_total"] == 4


def test_a_request_is_measured_by_its_events() -> None:
    metrics = metrics_of(STATS)
    report = CacheReport(CachePolicy("look-m", keep=0.2), 100, 90, 20, 80, 80, 10, 50, True)
    timing = Timing(queue_s=1, encode_s=2, prefill_s=3, compress_s=4, decode_s=5)
    request = RequestMetrics(metrics, arrived_s=0.0)
    request.event(TokenEvent("a", 1, "x", 1, cache=report))
    request.event(TokenEvent("a", 2, "y", 2))
    request.event(TokenEvent("a", 3, "", 3, finish="stop", cache=report, timing=timing))
    request.close()
    seen = values(metrics.expose().decode())
    assert seen["lookm_kv_kept_ratio_sum{method=look-m}"] == 0.2
    assert seen["lookm_kv_evicted_tokens_total{method=look-m}"] == 80
    assert seen["lookm_kv_merged_tokens_total{method=look-m}"] == 80
    assert seen["lookm_generation_tokens_total{method=look-m}"] == 3
    assert seen["lookm_time_to_first_token_seconds_count"] == 1
    assert seen["lookm_inter_token_latency_seconds_count"] == 2
    assert seen["lookm_e2e_request_latency_seconds_count"] == 1
    assert seen["lookm_request_compress_time_seconds_sum"] == 4
    assert seen["lookm_vision_encode_seconds_sum"] == 2
    assert seen["lookm_request_success_total{finish_reason=stop}"] == 1
    assert seen["lookm_request_success_total{finish_reason=abort}"] == 0


def test_vllm_names_carry_the_same_numbers() -> None:
    metrics = metrics_of(STATS)
    metrics.increase("lookm_generation_tokens_total", 3, method="full")
    metrics.increase("lookm_generation_tokens_total", 4, method="look-m")
    metrics.increase("lookm_request_success_total", finish_reason="stop")
    metrics.observe("lookm_time_to_first_token_seconds", 0.03)
    assert "vllm:" not in metrics.expose().decode()
    metrics.read("lookm_requests_waiting", lambda: 3)
    metrics.add_vllm_names("llava")
    seen = values(metrics.expose().decode())
    who = "engine=0,model_name=llava"
    assert seen[f"vllm:num_requests_waiting{{{who}}}"] == 3
    assert seen[f"vllm:kv_cache_usage_perc{{{who}}}"] == 0.25
    assert seen[f"vllm:generation_tokens_total{{{who}}}"] == 7
    assert seen["vllm:request_success_total{engine=0,finished_reason=stop,model_name=llava}"] == 1
    assert seen["vllm:time_to_first_token_seconds_bucket{engine=0,le=0.04,model_name=llava}"] == 1
    blocks = "block_size=16,engine=0,model_name=llava,num_gpu_blocks=4096"
    assert seen[f"vllm:cache_config_info{{{blocks}}}"] == 1
    families = {s.name.removesuffix("_total") for s in SERIES}
    assert set(ALIASES) <= families


def test_labels_are_bounded() -> None:
    metrics = metrics_of(STATS)
    metrics.increase("lookm_requests_rejected_total", reason="invented by a client")
    metrics.increase("lookm_generation_tokens_total", method="invented")
    seen = values(metrics.expose().decode())
    assert seen["lookm_requests_rejected_total{reason=other}"] == 1
    assert seen["lookm_generation_tokens_total{method=other}"] == 1
    for code in CODES:
        assert f"lookm_requests_rejected_total{{reason={code}}}" in seen
    for method in PRESETS:
        assert f"lookm_generation_tokens_total{{method={method}}}" in seen


def test_the_decode_rate_is_tokens_over_decoding_time_and_ends_with_the_window() -> None:
    def stats(tokens: int, decode_s: float) -> EngineStats:
        return EngineStats(1, 0, 0, 0, 0, decode_tokens_total=tokens, decode_s=decode_s)

    rate = DecodeRate()
    rate.sample(0.0, stats(100, 1.0))
    assert rate.tokens_per_s() == 0
    rate.sample(8.0, stats(300, 3.0))
    assert rate.tokens_per_s() == 100
    rate.sample(8.0 + RATE_WINDOW_S, stats(300, 3.0))
    assert rate.tokens_per_s() == 0


async def test_counters_survive_the_worker_and_gauges_return_to_zero(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await client.post(CHAT, json=chat(image(), kv_cache="look-m@0.2"))
    before = values((await client.get("/metrics")).text)
    await client.post(CHAT, json=chat("fake:exit"))
    during = values((await client.get("/metrics")).text)
    await app.state.services.engine.wait_ready(30)
    await client.post(CHAT, json=chat(image()))
    after = values((await client.get("/metrics")).text)
    counters = [s.name for s in SERIES if s.kind == "counter"]
    for name in (n for n in before if n.split("{")[0] in counters):
        assert before[name] <= during[name] <= after[name], name
    assert after["lookm_prompt_tokens_total"] > before["lookm_prompt_tokens_total"] > 0
    assert after["lookm_worker_restarts_total"] == before["lookm_worker_restarts_total"] + 1
    for name in ("kv_cache_used_bytes", "kv_cache_saved_bytes", "requests_running"):
        assert during[f"lookm_{name}"] == after[f"lookm_{name}"] == 0


async def test_what_is_refused_is_counted_by_code(client: httpx.AsyncClient) -> None:
    name = "lookm_requests_rejected_total{reason=unknown_parameter}"
    before = values((await client.get("/metrics")).text)[name]
    await client.post(CHAT, json=chat(nonsense=1))
    assert values((await client.get("/metrics")).text)[name] == before + 1
