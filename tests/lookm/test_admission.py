"""What counts as waiting: only what could not run at once, by places and by pages."""

import random
from typing import Any

import pytest

from lookm import CachePolicy
from lookm.errors import QueueFullError
from tests.lookm.tiny import answers, random_prompt, tiny_engine

PAGE_BYTES = 2 * 2 * 16 * 16 * 4  # K and V, 2 heads, 16 rows of 16 numbers
PROMPT = random_prompt(2, seed=1)  # 25 to 32 tokens: 2 pages in each of 3 layers
FIFTH = CachePolicy("look-m", keep=0.2, text="none")


def added(engine: Any, num_requests: Any, policy: Any = CachePolicy(), prompt: Any = PROMPT) -> Any:  # noqa: B008 frozen
    """How many of so many requests, which come at once, the engine takes in."""
    for number in range(num_requests):
        try:
            engine.add(prompt.request(f"{id(policy)}-{number}", policy))
        except QueueFullError:
            return number
    return num_requests


def test_a_burst_onto_an_idle_engine_fills_the_places_and_then_the_queue() -> None:
    engine = tiny_engine(max_running=3, max_waiting=2)
    assert added(engine, 9) == 3 + 2
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (3, 2)
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.add(PROMPT.request("late"))


def test_a_place_that_becomes_free_counts_before_the_next_step() -> None:
    engine = tiny_engine(max_running=2, max_waiting=1)
    requests = [PROMPT.request(str(number)) for number in range(4)]
    for request in requests[:3]:
        engine.add(request)
    engine.step()
    engine.abort("0")
    engine.add(requests[3])
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)


@pytest.mark.parametrize(("policy", "at_once"), [(CachePolicy(), 2), (FIFTH, 4)])
def test_what_finds_no_free_pages_waits(policy: Any, at_once: Any) -> None:
    """At a fifth of the cache a burst takes half the pages here: one of two, in each layer."""
    engine = tiny_engine(kv_cache_bytes=12 * PAGE_BYTES, max_running=8, max_waiting=1)
    assert added(engine, 9, policy) == at_once + 1
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (at_once, 1)


def test_all_that_were_taken_in_are_answered() -> None:
    engine = tiny_engine(kv_cache_bytes=12 * PAGE_BYTES, max_running=8, max_waiting=1)
    assert len(answers(engine, [PROMPT.request(str(number)) for number in range(3)])) == 3


@pytest.mark.parametrize("seed", range(12))
def test_what_was_taken_in_beyond_the_bound_starts_with_the_next_step(seed: Any) -> None:
    """At any moment of a busy engine: after the step, no more wait than may."""
    rng = random.Random(seed)
    most = rng.randint(1, 3)
    engine = tiny_engine(
        kv_cache_bytes=rng.randint(12, 60) * PAGE_BYTES,
        max_running=rng.randint(2, 6),
        max_waiting=most,
        max_step_tokens=4096,
    )
    number = refused = 0
    for _ in range(30):
        for _ in range(rng.randint(0, 5)):
            prompt, number = random_prompt(rng.randint(0, 2), seed=number), number + 1
            policy = rng.choice([CachePolicy(), FIFTH])
            try:
                engine.add(prompt.request(str(number), policy, max_tokens=rng.randint(1, 12)))
            except QueueFullError:
                refused += 1
        preempted = engine.stats().preemptions_total
        engine.step()
        preempted = engine.stats().preemptions_total - preempted
        assert engine.stats().waiting <= most + preempted
        if preempted:
            break  # what was preempted waits beyond the bound
    assert number > refused
