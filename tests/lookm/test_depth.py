"""Layers that keep different numbers of rows, in the engine: pages, admission, preemption."""

from typing import Any

import pytest

from lookm import CachePolicy
from lookm.pages import pages_for
from lookm.policy import PRESETS
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

DEEP = sorted(method for method in PRESETS if PRESETS[method].depth is not None)


def sharp_llava() -> Any:
    """Attention on few keys, and fewer with depth."""
    model = tiny_llava()
    for depth, layer in enumerate(model.model.language_model.layers):
        layer.self_attn.q_proj.weight.data *= 2.0 ** (depth + 1)
    return model


def rows_after_prefill(engine: Any, policy: Any, num_images: int = 12) -> Any:
    """Rows of each layer, pages held and the report, before the first decode."""
    engine.add(random_prompt(num_images, seed=2).request("a", policy))
    events: list[Any] = []
    while not events:
        events = engine.step()
        engine.check()
    (sequence,) = engine._scheduler.running
    return sequence.cache.kept_L.tolist(), sequence.cache.num_pages, events[0].cache


@pytest.mark.parametrize("method", DEEP)
def test_layers_keep_different_counts_of_the_same_total_and_hold_no_page_more(method: Any) -> None:
    keep = 0.5 if method in ("aircache", "meda") else 0.3  # text is protected
    engine = tiny_engine(sharp_llava(), page_tokens=4)
    rows_L, num_pages, report = rows_after_prefill(engine, CachePolicy(method, keep=keep))
    policy = CachePolicy("h2o", keep=keep, recent=report.policy.recent)
    even_L, *_ = rows_after_prefill(tiny_engine(page_tokens=4), policy)
    assert len(set(rows_L)) > 1
    assert sum(rows_L) == sum(even_L)
    assert num_pages == sum(pages_for(rows, 4) for rows in rows_L)
    assert report.bytes == num_pages * engine.plan.page_bytes
    assert report.kept_tokens == even_L[0]


@pytest.mark.parametrize("method", DEEP)
def test_preempted_requests_give_the_same_answers(method: Any) -> None:
    policy = CachePolicy(method, keep=0.4)
    requests = [random_prompt(3, seed=n).request(str(n), policy, max_tokens=40) for n in range(6)]
    roomy = answers(tiny_engine(kv_cache_bytes=8 * 2**20), requests)
    pages = 3 * 9
    tight = tiny_engine(kv_cache_bytes=pages * 2 * 2 * 16 * 16 * 4, page_tokens=16)
    assert answers(tight, requests) == roomy
    assert tight.stats().preemptions_total > 0
