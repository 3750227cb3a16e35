"""The engine against `transformers.generate()`, and what it promises about pages and endings."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from lookm import CachePolicy, ImageInput, Request, RequestError, Sampling
from lookm.errors import PolicyError, PromptTooLongError, QueueFullError
from lookm.policy import PRESETS
from tests.lookm.expected_answer import compressed_answer
from tests.lookm.tiny import (
    IMAGE,
    answers,
    generate,
    random_prompt,
    tiny_engine,
    tiny_llava,
)

FULL, LOOK = CachePolicy(), CachePolicy("look-m", keep=0.2)


@functools.cache
def expected(num_images: Any, seed: Any, num_tokens: int = 12, kv_heads: int = 2) -> Any:
    return generate(tiny_llava(kv_heads=kv_heads), random_prompt(num_images, seed), num_tokens)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("num_images", [0, 1, 2, 5, 16])
def test_full_cache_equals_generate(num_images: Any, kv_heads: Any) -> None:
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads))
    got = answers(engine, [random_prompt(num_images, seed=num_images).request("a")])
    assert got["a"] == expected(num_images, num_images, kv_heads=kv_heads)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_eight_at_a_time_with_mixed_policies_equal_generate(every: Any) -> None:
    prompts = [random_prompt(n, seed=n) for n in (0, 1, 2, 3, 4, 6, 8, 16)]
    policies = [FULL, LOOK, FULL, CachePolicy("h2o", keep=0.3), FULL, LOOK, FULL, FULL]
    requests = [
        prompt.request(str(i), policy)
        for i, (prompt, policy) in enumerate(zip(prompts, policies, strict=True))
    ]
    got = answers(tiny_engine(kv_cache_bytes=8 * 2**20), requests, every=every)
    for i, (prompt, policy) in enumerate(zip(prompts, policies, strict=True)):
        if policy is FULL:
            assert got[str(i)] == generate(tiny_llava(), prompt, 12)
        else:
            assert got[str(i)] == compressed_answer(tiny_llava(), prompt, policy, 12)


@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"full"}))
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_preset_equals_a_plain_forward_over_its_compressed_cache(
    method: Any, kv_heads: Any
) -> None:
    policy, prompt = CachePolicy(method, keep=0.3), random_prompt(4, seed=11)
    model = tiny_llava(kv_heads=kv_heads)
    got = answers(tiny_engine(model), [prompt.request("a", policy)])["a"]
    assert got == compressed_answer(tiny_llava(kv_heads=kv_heads), prompt, policy, 12)


def test_the_comparison_can_fail() -> None:
    """Negative control: other pixels, or another policy, give other tokens."""
    prompt, other = random_prompt(4, seed=11), random_prompt(4, seed=12)
    swapped = type(prompt)(prompt.ids, other.pixels)
    assert answers(tiny_engine(), [swapped.request("a")])["a"] != expected(4, 11)
    tight = CachePolicy("streaming", keep_tokens=6)
    assert answers(tiny_engine(), [prompt.request("a", tight)])["a"] != expected(4, 11)


def test_a_prompt_in_chunks_equals_generate() -> None:
    for budget in (7, 16, 50):
        requests = [random_prompt(n, seed=n).request(str(n)) for n in (5, 0, 8)]
        got = answers(tiny_engine(max_step_tokens=budget), requests, every=1)
        assert all(got[str(n)] == expected(n, n) for n in (5, 0, 8))


def test_a_prompt_longer_than_the_step_is_still_looked_at_whole() -> None:
    prompt = random_prompt(8, seed=8)
    got = answers(tiny_engine(max_step_tokens=16), [prompt.request("a", LOOK)])["a"]
    assert got == compressed_answer(tiny_llava(), prompt, LOOK, 12)


def test_preempted_requests_give_the_same_answers() -> None:
    requests = [random_prompt(3, seed=n).request(str(n), LOOK if n % 2 else FULL) for n in range(6)]
    roomy = answers(tiny_engine(kv_cache_bytes=8 * 2**20), requests)
    pages = 3 * 6 * 4  # about four full requests without their answers
    tight = tiny_engine(kv_cache_bytes=pages * 2 * 2 * 16 * 16 * 4, page_tokens=16)
    long = [
        random_prompt(3, seed=n).request(str(n), LOOK if n % 2 else FULL, max_tokens=40)
        for n in range(6)
    ]
    got = answers(tight, long)
    assert tight.stats().preemptions_total > 0
    assert all(got[id][:12] == roomy[id] for id in roomy)
    assert all(len(tokens) == 40 for tokens in got.values())


def test_a_compressed_request_holds_a_fifth_of_the_pages() -> None:
    prompt = random_prompt(16, seed=1, text_tokens=3)
    held = {}
    strict = CachePolicy("look-m", keep=0.2, text="prior")  # these toy prompts are 17 % text
    for name, policy in (("full", FULL), ("look", strict)):
        engine = tiny_engine(page_tokens=4)
        engine.add(prompt.request("a", policy))
        engine.step()
        engine.step()
        held[name] = engine.stats().used_bytes
        assert engine.stats().full_bytes == held["full"]
        engine.abort("a")
        engine.step()
        assert engine.stats().used_bytes == 0
    page_per_layer = engine.plan.page_bytes * engine.plan.num_layers
    assert abs(held["look"] - 0.2 * held["full"]) <= page_per_layer


def test_admission_counts_what_the_policy_keeps() -> None:
    """The pool that holds one full prompt runs several compressed ones at the same time."""
    prompt = random_prompt(16, seed=1)
    pages = 3 * (-(-len(prompt.ids) // 16) + 1)
    settings = {"kv_cache_bytes": pages * 2 * 2 * 16 * 16 * 4}
    running = {}
    for name, policy in (("full", FULL), ("look", LOOK)):
        engine = tiny_engine(**settings)
        for i in range(5):
            engine.add(prompt.request(str(i), policy))
        running[name] = 0
        while engine.has_work:
            engine.step()
            running[name] = max(running[name], engine.stats().running)
    assert running["full"] == 1
    assert running["look"] >= 3


def test_abort_during_each_stage_frees_every_page_and_ends_once() -> None:
    for steps in range(6):
        engine = tiny_engine(max_step_tokens=20)
        for i in range(3):
            engine.add(random_prompt(4, seed=i).request(str(i), LOOK if i == 1 else FULL))
        for _ in range(steps):
            engine.step()
        for i in range(3):
            engine.abort(str(i))
            engine.abort(str(i))
        engine.check()
        assert engine.stats().used_bytes == 0
        events = engine.step()
        assert [event.finish for event in events] == ["abort"] * 3
        assert not engine.has_work
        assert engine.step() == []


def test_reports_say_what_was_kept() -> None:
    prompt = random_prompt(8, seed=3)
    engine = tiny_engine()
    engine.add(prompt.request("a", LOOK, max_tokens=3))
    events = []
    while engine.has_work:
        events += engine.step()
    first, last = events[0].cache, events[-1].cache
    assert first == last
    assert first.prompt_tokens == len(prompt.ids)
    assert first.image_tokens == 72
    assert first.kept_tokens + first.evicted_tokens == first.prompt_tokens
    assert first.merged_tokens == first.evicted_tokens
    assert first.compressed
    assert first.bytes < first.full_bytes
    assert [event.num_generated for event in events] == [1, 2, 3]
    assert events[1].cache is None
    assert [event.finish for event in events] == [None, None, "length"]
    assert events[-1].timing.prefill_s > 0


def test_a_text_only_prompt_is_not_compressed_by_a_modality_aware_policy() -> None:
    prompt = random_prompt(0, seed=5, text_tokens=60)
    engine = tiny_engine()
    engine.add(prompt.request("a", LOOK))
    report = engine.step()[0].cache
    assert not report.compressed
    assert report.kept_tokens == report.prompt_tokens
    assert report.bytes == report.full_bytes


def test_stop_strings_and_the_end_token_end_an_answer() -> None:
    prompt = random_prompt(1, seed=1)
    tokens = expected(1, 1)
    stop = f" w{tokens[4]}"
    engine = tiny_engine()
    events = list(engine.generate([prompt.request("a", stop=(stop,))]))
    text = "".join(event.text for event in events)
    assert events[-1].finish == "stop"
    assert stop not in text
    assert text == "".join(f" w{t}" for t in tokens).split(stop)[0]
    assert engine.stats().used_bytes == 0


def test_an_image_seen_before_is_not_encoded_again() -> None:
    engine = tiny_engine(parking=False)
    prompt = random_prompt(3, seed=2)
    for turn in range(2):
        list(engine.generate([prompt.request(str(turn))]))
    stats = engine.stats()
    assert (stats.image_cache_queries_total, stats.image_cache_hits_total) == (6, 3)


def test_seeded_sampling_does_not_depend_on_the_batch() -> None:
    seeded = {"temperature": 1.0, "seed": 3, "top_p": 0.9}
    alone = answers(tiny_engine(), [random_prompt(2, seed=1).request("a", LOOK, **seeded)])["a"]
    others = [random_prompt(n, seed=n + 20).request(str(n), temperature=1.0) for n in range(5)]
    mixed = [*others, random_prompt(2, seed=1).request("a", LOOK, **seeded)]
    got = answers(tiny_engine(kv_cache_bytes=8 * 2**20), mixed, every=1)
    assert got["a"] == alone
    again = answers(
        tiny_engine(), [random_prompt(2, seed=1).request("a", LOOK, **{**seeded, "seed": 4})]
    )
    assert again["a"] != alone


def test_requests_that_can_never_run_are_refused_with_a_reason() -> None:
    engine = tiny_engine(max_running=1, max_waiting=0)
    prompt = random_prompt(2, seed=1)
    cases = [
        (prompt.request("x", max_tokens=600), PromptTooLongError, "exceed the 512"),
        (prompt.request("x", CachePolicy("nope")), PolicyError, "look-m"),
        (prompt.request("x", max_tokens=0), RequestError, "max_tokens"),
        (Request("x", prompt.ids), RequestError, "18 image tokens"),
        (Request("x", ()), RequestError, "empty"),
    ]
    for request, error, message in cases:
        with pytest.raises(error, match=message):
            engine.add(request)
    engine.add(prompt.request("a"))
    with pytest.raises(RequestError, match="already in use"):
        engine.add(prompt.request("a"))
    with pytest.raises(QueueFullError):
        engine.add(prompt.request("b"))
    assert {event.request_id for _ in range(20) for event in engine.step()} == {"a"}


def test_a_request_larger_than_the_pool_is_refused_and_says_what_helps() -> None:
    engine = tiny_engine(kv_cache_bytes=3 * 4 * 2 * 2 * 16 * 16 * 4)
    prompt = random_prompt(8, seed=1)
    with pytest.raises(PromptTooLongError, match="keep less of the cache"):
        engine.add(prompt.request("full"))
    small = {"max_tokens": 4}
    assert len(answers(engine, [prompt.request("look", LOOK, **small)])["look"]) == 4


def test_the_default_sampling_is_greedy_and_deterministic() -> None:
    assert Sampling().temperature == 0
    prompt = random_prompt(2, seed=9)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = answers(tiny_engine(), [prompt.request("a")])
    assert first == answers(tiny_engine(), [prompt.request("a")])


def test_a_request_whose_images_do_not_fit_its_prompt_ends_alone() -> None:
    engine, good = tiny_engine(), random_prompt(2, seed=4)
    pixels = {"pixel_values": good.pixels[0][None]}
    bad = Request("bad", (1, IMAGE, IMAGE, 5), (ImageInput("d", pixels, 2),))
    engine.add(good.request("first"))
    engine.add(bad)
    engine.add(good.request("second"))
    events = []
    while engine.has_work:
        events += engine.step()
        engine.check()
    ends = {event.request_id: event for event in events if event.finish}
    assert ends["bad"].finish == "error"
    assert "9 features for 2 tokens" in ends["bad"].error
    for name in ("first", "second"):
        tokens = [event.token_id for event in events if event.request_id == name]
        assert tokens == expected(2, 4)
    assert engine.stats().used_bytes == 0


@pytest.mark.parametrize("token", [-1, 1_000_000])
def test_a_token_the_model_does_not_have_is_refused_before_it_runs(token: Any) -> None:
    engine = tiny_engine()
    prompt = random_prompt(1, seed=0)
    request = replace(prompt.request("a"), prompt_ids=(*prompt.ids, token))
    with pytest.raises(RequestError, match="token ids must be from 0 to"):
        engine.add(request)
    assert not engine.has_work


def test_the_lowest_priority_comes_first_and_equals_in_their_order() -> None:
    engine = tiny_engine(max_running=1)
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 0)):
        prompt = random_prompt(0, seed=ord(name))
        engine.add(replace(prompt.request(name, max_tokens=2), priority=priority))
    order = []
    while engine.has_work:
        order += [event.request_id for event in engine.step() if event.finish]
        engine.check()
    assert order == ["d", "a", "c", "e", "b"]
    waiting = engine._scheduler.waiting
    for name, priority in (("f", 0), ("g", 5), ("h", 0)):
        prompt = random_prompt(0, seed=ord(name))
        engine.add(replace(prompt.request(name, max_tokens=9), priority=priority))
    engine.step()
    (running,) = engine._scheduler.running
    engine._scheduler._preempt(running)
    assert [seq.request.id for seq in waiting] == ["f", "h", "g"], "before its equals"
