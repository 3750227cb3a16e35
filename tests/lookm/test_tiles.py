"""Long prompts in tiles, stopped and gone on with at any: the same answers and the same rows."""

import random
from dataclasses import replace
from typing import Any

import pytest

from lookm import CachePolicy
from lookm.models.tiles import tile_size
from lookm.policy import PRESETS
from tests.lookm.models.toys import TOYS, prompt
from tests.lookm.test_conversations import Conversation, prefilled
from tests.lookm.test_parking import same
from tests.lookm.tiny import answers, generate, random_prompt, tiny_engine, tiny_llava

METHODS = sorted(PRESETS)
SLOW = pytest.mark.slow
EACH_TILE = {"tile_tokens": 16, "max_step_ms": 0}


def policy_of(method: str) -> CachePolicy:
    return CachePolicy(method, keep=None if method == "full" else 0.3)


@pytest.mark.parametrize("method", METHODS)
def test_in_tiles_a_prompt_keeps_and_answers_the_same(method: str) -> None:
    talk = Conversation.begin(1, num_images=8)
    request = talk.prompt().request("a", policy_of(method), max_tokens=2)
    whole = tiny_engine(tiny_llava(), tile_tokens=0, prompt_store_bytes=0)
    tiled = tiny_engine(tiny_llava(), **EACH_TILE, prompt_store_bytes=0)
    token, rows, _ = prefilled(tiled, request)
    expected_token, expected, _ = prefilled(whole, request)
    assert token == expected_token
    assert same(rows, expected)


@pytest.mark.parametrize("method", METHODS)
def test_in_tiles_a_later_turn_takes_over_the_same(method: str) -> None:
    engine = tiny_engine(tiny_llava(max_positions=1024), **EACH_TILE, prompt_store_bytes=2**26)
    whole = tiny_engine(tiny_llava(max_positions=1024), tile_tokens=0, prompt_store_bytes=0)
    talk = Conversation.begin(7, num_images=10)
    for turn in range(3):
        request = talk.prompt().request(str(turn), policy_of(method), max_tokens=2)
        token, rows, reused = prefilled(engine, request)
        expected_token, expected, _ = prefilled(whole, request)
        assert token == expected_token
        assert same(rows, expected)
        assert bool(reused) == (
            turn > 0 and method not in {"aircache", "expected-attention", "meda"}
        )
        talk.turn(num_images=turn, text=40)
    assert engine._prompts.store.num_pins == 0


@pytest.mark.parametrize("name", sorted(TOYS))
@pytest.mark.parametrize(
    "method", ["full", "look-m", *(pytest.param(m, marks=SLOW) for m in ("look-m-plus", "snapkv"))]
)
def test_in_tiles_every_family_answers_the_same(name: str, method: str) -> None:
    toy = TOYS[name]
    tiled, whole = (
        tiny_engine(toy.model(), prompt_store_bytes=0, **config)
        for config in (EACH_TILE, {"tile_tokens": 0})
    )
    if None not in tiled.info.windows and method != "full":
        pytest.skip("a model of windows only runs at full")
    asked = prompt(toy, 3, seed=4, text_tokens=40)
    request = asked.request("a", policy_of(method), max_tokens=3)
    token, rows, _ = prefilled(tiled, request)
    expected_token, expected, _ = prefilled(whole, request)
    assert token == expected_token
    assert same(rows, expected)


def test_tiles_are_smaller_behind_many_rows() -> None:
    assert [tile_size(512, seen) for seen in (0, 4096, 4097, 8192, 8193, 10**6)] == [
        *(512, 512, 256, 256, 128, 128)
    ]
    assert tile_size(1, 10**6) == 1


def test_streams_go_on_while_a_long_prompt_is_prefilled() -> None:
    """A token for each tile of three layers, and the long prompt's answer is generate()'s."""
    engine = tiny_engine(tiny_llava(), **EACH_TILE, prompt_store_bytes=0)
    stream = random_prompt(0, seed=1).request("stream", max_tokens=200)
    engine.add(stream)
    engine.step()
    long = random_prompt(20, seed=2)
    engine.add(long.request("long", max_tokens=3))
    before_first = 0
    while True:
        events = engine.step()
        engine.check()
        before_first += sum(event.request_id == "stream" for event in events)
        if any(event.request_id == "long" for event in events):
            break
    assert before_first >= 3 * len(long.ids) // 16
    got = answers(tiny_engine(tiny_llava(), **EACH_TILE), [long.request("again", max_tokens=5)])
    assert got["again"] == generate(tiny_llava(), long, 5)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    engine = tiny_engine(tiny_llava(), **EACH_TILE, prompt_store_bytes=0)
    engine.add(random_prompt(20, seed=2).request("long", "look-m@0.3", max_tokens=2))
    engine.add(random_prompt(20, seed=3).request("also long", "look-m@0.3", max_tokens=2))
    for _ in range(25):
        engine.step()
    engine.add(random_prompt(0, seed=1).request("short", max_tokens=2))
    order: list[str] = []
    while engine.has_work:
        order += [event.request_id for event in engine.step() if event.finish]
        engine.check()
    assert order == ["short", "long", "also long"]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=SLOW) for n in range(4, 12))])
def test_in_any_mix_answers_are_those_without_tiles(seed: int) -> None:
    """Aborts of suspended prompts, preemptions, parked conversations, a store that is too small."""
    rng = random.Random(seed)
    engine = tiny_engine(
        tiny_llava(max_positions=1024),
        tile_tokens=rng.choice([8, 16, 50]),
        max_step_ms=0,
        kv_cache_bytes=rng.choice([2**19, 2**22]),
        prompt_store_bytes=rng.choice([0, 2**18, 2**24]),
        max_running=rng.choice([2, 8]),
    )
    plain = tiny_engine(
        tiny_llava(max_positions=1024), tile_tokens=0, prompt_store_bytes=0, parking=False
    )
    talks = [Conversation.begin(50 * seed + i, rng.randrange(0, 8)) for i in range(4)]
    for turn in range(2):
        requests = [
            talk.prompt().request(f"{turn}-{i}", policy_of(rng.choice(METHODS)), max_tokens=4)
            for i, talk in enumerate(talks)
        ]
        for i, talk in enumerate(talks):
            gone = talk.prompt().request(f"gone {turn}-{i}", "look-m@0.3", max_tokens=4)
            engine.add(replace(gone, reuse=rng.choice(["exact", "none"])))
            for _ in range(rng.randrange(6)):
                engine.step()
                engine.check()
            engine.abort(gone.id)
            engine.step()
        got = answers(engine, requests, every=rng.choice([0, 1, 3]))
        assert got == answers(plain, requests)
        for talk in talks:
            talk.turn(num_images=rng.randrange(3), text=rng.randrange(5, 80))
    assert engine._prompts.store.num_pins == 0
    engine._parking.clear()
    assert engine._pool.num_used == 0


def test_what_was_suspended_leaves_nothing_when_it_is_aborted() -> None:
    engine: Any = tiny_engine(tiny_llava(), **EACH_TILE, prompt_store_bytes=2**22)
    engine.add(random_prompt(20, seed=2).request("long", "look-m@0.3"))
    sequence = engine._sequences["long"]
    while sequence.job is None:  # twenty images first, a layer of a tower a step
        assert not engine.step()
    engine.abort("long")
    assert sequence.job is None
    assert [event.finish for event in engine.step()] == ["abort"]
    engine.check()
    assert engine._pool.num_used == engine._prompts.store.num_pins == 0
