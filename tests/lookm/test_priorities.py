"""Who waits for whom, and who gives way: priorities, and prompts that begin alike."""

import random
from dataclasses import replace
from typing import Any

import pytest

from lookm.engine import Engine
from tests.lookm.tiny import Prompt, answers, random_prompt, tiny_engine, tiny_llava

SYSTEM_TOKENS = 70


def streams(priorities: tuple[int, int], kv_cache_bytes: int) -> tuple[dict[str, list[int]], int]:
    """Two answers of 80 tokens, the first request a step older; and how often one gave way."""
    engine = tiny_engine(
        tiny_llava(), kv_cache_bytes=kv_cache_bytes, prompt_store_bytes=0, parking=False
    )
    tokens: dict[str, list[int]] = {"old": [], "new": []}
    for seed, (name, priority) in enumerate(zip(tokens, priorities, strict=True), start=1):
        request = random_prompt(1, seed=seed, text_tokens=28 + 2 * seed).request(
            name, max_tokens=80
        )
        engine.add(replace(request, priority=priority))
        engine.step()
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
        engine.check()
    return tokens, engine.stats().preemptions_total


@pytest.mark.parametrize("priorities", [(0, 0), (5, 0), (0, 5)])
@pytest.mark.parametrize("kv_cache_bytes", [3 * 2**15, 2**17])
def test_whoever_gives_way_in_a_dry_pool_both_answers_are_right(
    priorities: tuple[int, int], kv_cache_bytes: int
) -> None:
    """An older, less important one may have its place in the step already: it must leave that."""
    expected, _ = streams((0, 0), 2**22)
    got, num_preemptions = streams(priorities, kv_cache_bytes)
    assert num_preemptions > 0, "a pool that is large enough proves nothing"
    assert {name: ids[:79] for name, ids in got.items()} == {
        name: ids[:79] for name, ids in expected.items()
    }


def with_system(num_images: int, seed: int, system: int) -> Prompt:
    """A prompt whose first tokens are those of a system text."""
    rng = random.Random(system)
    said = [1, *(rng.randrange(5, 90) for _ in range(SYSTEM_TOKENS))]
    rest = random_prompt(num_images, seed=seed)
    return Prompt((*said, *rest.ids[1:]), rest.pixels)


def long_engine(**config: Any) -> Engine:
    return tiny_engine(
        tiny_llava(max_positions=2048),
        **{
            "max_context_tokens": 2048,
            "tile_tokens": 80,
            "max_step_ms": 0,
            "prompt_store_bytes": 2**26,
            "kv_cache_bytes": 2**24,
            **config,
        },
    )


def under_way(engine: Engine, request: Any) -> None:
    """Let its prefill begin."""
    engine.add(request)
    while engine._sequences[request.id].job is None:
        engine.step()


@pytest.mark.parametrize("system", [0, 1])
def test_a_short_question_does_not_wait_for_a_long_prompt_with_the_same_system_text(
    system: int,
) -> None:
    engine = long_engine()
    under_way(engine, with_system(80, 2, system=0).request("long", "look-m@0.3", max_tokens=2))
    engine.add(with_system(0, 1, system).request("short", max_tokens=1))
    assert [event.request_id for event in engine.step() if event.finish] == ["short"]


@pytest.mark.parametrize(
    ("first", "second", "store_bytes", "waits"),
    [
        ("look-m@0.3", "look-m@0.3", 2**26, True),
        ("meda@0.3", "full", 2**26, True),
        ("full", "look-m@0.3", 2**26, False),
        ("snapkv@0.3", "h2o@0.3", 2**26, False),
        ("h2o@0.3", "roco@0.3", 2**26, False),
        ("look-m@0.3", "look-m@0.3", 2**15, False),
    ],
)
def test_nobody_waits_for_what_it_cannot_take_over(
    first: str, second: str, store_bytes: int, waits: bool
) -> None:
    engine = long_engine(prompt_store_bytes=store_bytes)
    prompt = random_prompt(80, seed=2, text_tokens=60)
    under_way(engine, prompt.request("first", first, max_tokens=2))
    engine.add(prompt.request("second", second, max_tokens=2))
    sequence = engine._sequences["second"]
    engine.step()
    assert (sequence in engine._scheduler.waiting) == waits
    while engine.has_work:
        engine.step()
    assert sequence.report is not None
    assert bool(sequence.report.cached_tokens) == waits


def test_an_important_prompt_does_not_wait_for_the_same_one_that_is_not() -> None:
    """The other's tiles are not chosen as long as somebody more important comes."""
    engine = long_engine(tile_tokens=16, max_running=8)
    prompt = with_system(20, 2, system=0)
    under_way(engine, replace(prompt.request("low", "look-m@0.3", max_tokens=2), priority=10))
    engine.add(replace(prompt.request("high", "look-m@0.3", max_tokens=2), priority=-10))
    engine.add(replace(random_prompt(15, seed=9).request("mid", max_tokens=2), priority=5))
    order: list[str] = []
    while engine.has_work:
        order += [event.request_id for event in engine.step() if event.finish]
    assert order == ["high", "mid", "low"]


def test_a_compressed_answer_longer_than_a_tile_goes_on_after_it_gave_way() -> None:
    """Its prompt is one piece; the tokens that it had generated are computed again behind it."""
    prompts = [random_prompt(8, seed=seed, text_tokens=20) for seed in (1, 2)]
    requests = [
        prompt.request(str(n), "look-m@0.3", max_tokens=120) for n, prompt in enumerate(prompts)
    ]
    plain = {"prompt_store_bytes": 0, "parking": False, "tile_tokens": 16, "page_tokens": 4}
    expected = answers(tiny_engine(tiny_llava(), kv_cache_bytes=2**22, **plain), requests)
    page_bytes = 2 * 2 * 4 * 16 * 4
    for num_pages in (130, 140, 150, 160):
        tight = tiny_engine(tiny_llava(), kv_cache_bytes=num_pages * page_bytes, **plain)
        tokens: dict[str, list[int]] = {request.id: [] for request in requests}
        for request in requests:
            tight.add(request)
        for _ in range(3000):
            if not tight.has_work:
                break
            for event in tight.step():
                if event.token_id is not None:
                    tokens[event.request_id].append(event.token_id)
            tight.check()
        assert not tight.has_work, "somebody is never computed again"
        assert tight.stats().preemptions_total > 0
        assert tokens == expected
