"""The core series once more, under vLLM's names and labels (`--no-metrics-vllm-names`: not).

For what reads vLLM's metrics: its Grafana dashboards, llm-d's endpoint picker, autoscalers. Knows
how names map; the numbers are those of `server.metrics`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from lookm.sizing import CacheShape
from lookm.types import ModelInfo

ALIASES = {
    "lookm_requests_running": "vllm:num_requests_running",
    "lookm_requests_waiting": "vllm:num_requests_waiting",
    "lookm_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "lookm_preemptions": "vllm:num_preemptions",
    "lookm_prompt_tokens": "vllm:prompt_tokens",
    "lookm_generation_tokens": "vllm:generation_tokens",
    "lookm_request_success": "vllm:request_success",
    "lookm_image_cache_queries": "vllm:mm_cache_queries",
    "lookm_image_cache_hits": "vllm:mm_cache_hits",
    "lookm_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "lookm_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "lookm_e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "lookm_request_queue_time_seconds": "vllm:request_queue_time_seconds",
    "lookm_request_prefill_time_seconds": "vllm:request_prefill_time_seconds",
    "lookm_request_decode_time_seconds": "vllm:request_decode_time_seconds",
}
LABELS = {"le": "le", "finish_reason": "finished_reason"}  # others are summed over


def with_vllm_names(families: Iterable[Metric], model: str, info: ModelInfo) -> Iterator[Metric]:
    """`families`, and after each that vLLM has, its twin."""
    always = {"model_name": model, "engine": "0"}
    for family in families:
        yield family
        if family.name in ALIASES:
            yield _twin(family, ALIASES[family.name], always)
    yield _cache_config(always, info)


def _twin(family: Metric, name: str, always: dict[str, str]) -> Metric:
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for sample in family.samples:
        kept = {LABELS[key]: value for key, value in sample.labels.items() if key in LABELS}
        suffix = sample.name.removeprefix(family.name)
        sums[name + suffix, tuple((always | kept).items())] += sample.value
    twin = Metric(name, family.documentation, family.type)
    for (sample_name, labels), value in sums.items():
        twin.add_sample(sample_name, dict(labels), value)
    return twin


def _cache_config(always: dict[str, str], info: ModelInfo) -> Metric:
    shape = CacheShape.of(info)
    block_bytes = shape.bytes(shape.rows(info.page_tokens, info.page_tokens))  # of all layers
    facts = {
        "block_size": str(info.page_tokens),
        "num_gpu_blocks": str(info.capacity_bytes // max(1, block_bytes)),
    }
    labels = always | facts
    config = GaugeMetricFamily(
        "vllm:cache_config_info", "Pages of the KV cache.", labels=list(labels)
    )
    config.add_metric(list(labels.values()), 1)
    return config
