"""Every query of every panel, and every alert, against a real Prometheus and a real server."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.docker.files import alerts, filled, panel_queries, panels, without_thresholds
from tests.docker.prometheus import SCRAPE_S, Prometheus
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat, data_url, image, png

BINARY = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None, reason="prometheus is not installed (Debian: prometheus)"),
]

STREAM_TOKENS = 150
POLICIES = ("full", "look-m@0.2", "h2o@0.5", "streaming@0.3")
# Zero when all is over: nothing runs, nothing was downloaded, and the fake engine does not encode,
# prefill or compress.
IDLE = {
    "cache": {"Used", "Saved", "Pool in use", "Requests that fit", "KV pool: used",
              "KV pool: at full cache", "Requests that fit, over time", "Image cache",
              "Preemptions"},
    "serving": {"Running", "Waiting", "Requests", "Worker restarts", "Images: encode",
                "Images: fetch", "Where the time goes: compress", "Where the time goes: prefill"},
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving_process("--model", "fake:step_s=0.02", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    assert BINARY is not None
    prometheus = Prometheus(BINARY, server.url, tmp_path_factory.mktemp("prometheus"))
    try:
        prometheus.wait_for("count_over_time(up[1m]) > 2")
        yield prometheus
    finally:
        prometheus.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client sees of one stream: what it used, and when each token came."""

    usage: dict[str, Any]
    tokens_at_s: list[float]


def stream(url: str, policy: str) -> Answer:
    """One long streamed answer."""
    body = chat(
        image(data_url(png("blue"))), "tell me a long story", kv_cache=policy,
        max_tokens=STREAM_TOKENS, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    usage: dict[str, Any] = {}
    tokens_at_s = []
    with httpx.stream("POST", url + CHAT, json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if '"content":"word' in line or '"content":" word' in line:
                tokens_at_s.append(time.time())
            if line.startswith("data: {"):
                usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
    return Answer(usage, tokens_at_s)


def expression(title: str, number: int = 0) -> str:
    """The query of a panel, by its title."""
    (found,) = [p["targets"][number]["expr"] for _, p in panels() if p["title"] == title]
    return filled(found)


def samples(prometheus: Prometheus) -> dict[str, list[float]]:
    """Every panel query's values now; none is empty, infinite or no number."""
    found = {q.name: [v for _, v in prometheus.query(q.expr)] for q in panel_queries()}
    assert [name for name, values in found.items() if not values] == []
    assert [name for name, values in found.items() if not all(map(math.isfinite, values))] == []
    return found


def test_a_fresh_start_shows_zeros(prometheus: Prometheus) -> None:
    for name, values in samples(prometheus).items():
        if "capacity" not in name:
            assert set(values) == {0.0}, name
    assert prometheus.value(expression("Capacity")) == 64 * 2**20


def test_queries_return_the_truth_of_mixed_traffic(
    server: ServerProcess, prometheus: Prometheus
) -> None:
    with ThreadPoolExecutor(len(POLICIES)) as pool:
        asked = [pool.submit(stream, server.url, policy) for policy in POLICIES]
        prometheus.wait_for(f"lookm_requests_running == {len(POLICIES)}")
        at_s = prometheus.wait_for("changes(lookm_prompt_tokens_total[2s:250ms]) == 0")
        answers = [future.result() for future in asked]
    caches = [answer.usage["kv_cache"] for answer in answers]
    held = sum(cache["bytes"] for cache in caches)
    full = sum(cache["full_bytes"] for cache in caches)
    assert prometheus.value(expression("Used"), at_s) == held
    assert prometheus.value(expression("Saved"), at_s) == full - held > 0
    assert prometheus.value(expression("KV pool", 1), at_s) == full
    assert prometheus.value(expression("Requests that fit"), at_s) == pytest.approx(
        64 * 2**20 * len(POLICIES) / held
    )

    speeds = [(len(t) - 1) / (t[-1] - t[0]) for t in (answer.tokens_at_s for answer in answers)]
    ended_s = min(answer.tokens_at_s[-1] for answer in answers)
    assert prometheus.value(expression("Decode"), ended_s) == pytest.approx(sum(speeds), rel=0.05)

    httpx.post(server.url + CHAT, json=chat(nonsense=1))
    time.sleep(4 * SCRAPE_S)
    made = sum(answer.usage["completion_tokens"] for answer in answers)
    assert made == len(POLICIES) * STREAM_TOKENS
    assert prometheus.value("sum(lookm_generation_tokens_total)") == made
    kept = {
        labels.get("method"): value
        for labels, value in prometheus.query(expression("Kept, by method"))
    }
    for cache in caches:
        share = cache["kept_tokens"] / cache["prompt_tokens"]
        assert kept[cache["method"]] == pytest.approx(share, rel=1e-6)

    idle = {name for name, values in samples(prometheus).items() if not any(values)}
    expected = {f"{board}: {panel}" for board, titles in IDLE.items() for panel in titles}
    assert {name for name in idle if not {name, name.rpartition(": ")[0]} & expected} == set()
    assert {name for name in expected if not any(i.startswith(name) for i in idle)} == set()


def test_every_alert_is_loaded_and_reads_data(
    server: ServerProcess, prometheus: Prometheus
) -> None:
    rules = httpx.get(f"{prometheus.url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(alerts(), "ok")
    for name, expr in alerts().items():
        assert prometheus.query(without_thresholds(expr)), name
        assert prometheus.query(expr) == [], f"{name} is firing"


def test_a_worker_killed_in_the_middle_is_seen(
    server: ServerProcess, prometheus: Prometheus
) -> None:
    before = prometheus.value("sum(lookm_generation_tokens_total)")
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(stream, server.url, "look-m@0.2")
        prometheus.wait_for("lookm_kv_cache_used_bytes > 0")
        httpx.post(server.url + CHAT, json=chat("fake:exit"))
        long.result()
    prometheus.wait_for('ALERTS{alertname="LookmWorkerRestarted", alertstate="firing"}')
    prometheus.wait_for("lookm_kv_cache_used_bytes == 0 and lookm_requests_running == 0")
    assert prometheus.value("lookm_kv_cache_saved_bytes") == 0
    assert prometheus.value("sum(lookm_generation_tokens_total)") >= before
    assert prometheus.query("resets(lookm_generation_tokens_total[5m]) > 0") == []
