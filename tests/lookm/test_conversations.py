"""Later turns take over what earlier ones computed, and are answered as if they had not."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lookm import CachePolicy, Request
from lookm.engine import Engine
from lookm.policy import PRESETS, resolve
from lookm.store import BLOCK_TOKENS
from tests.lookm.models.toys import TOYS, prompt
from tests.lookm.tiny import (
    IMAGE,
    IMAGE_TOKENS,
    Prompt,
    answers,
    generate,
    random_prompt,
    tiny_engine,
    tiny_llava,
)

METHODS = sorted(PRESETS)
AFTER_IMAGES = [name for name in METHODS if PRESETS[name].needs.after_images]
AFRESH = {"aircache", "expected-attention", "meda"}  # they need every query of the prompt


@dataclass
class Conversation:
    """A prompt that grows, turn by turn, as chat templates let it grow."""

    rng: random.Random
    ids: list[int]
    pixels: list[Any]

    @classmethod
    def begin(cls, seed: int, num_images: int = 6, text: int = 60) -> "Conversation":
        first = random_prompt(num_images, seed=seed, text_tokens=text)
        return cls(random.Random(seed), list(first.ids), list(first.pixels))

    def words(self, count: int) -> list[int]:
        return [self.rng.randrange(5, 90) for _ in range(count)]

    def turn(self, num_images: int = 0, text: int = 20) -> None:
        """An answer and another question. The last token of a prompt is not the next turn's."""
        more = random_prompt(num_images, seed=self.rng.randrange(10**6), text_tokens=text)
        self.ids = [*self.ids[:-1], self.rng.randrange(5, 90), *self.words(12), *more.ids]
        self.pixels += list(more.pixels)

    def prompt(self) -> Prompt:
        return Prompt(tuple(self.ids), tuple(self.pixels))


def prefilled(engine: Engine, request: Request) -> tuple[int, list[Any], int]:
    """The first token, every layer's rows after the prefill, and the tokens that were reused."""
    engine.add(request)
    sequence = engine._sequences[request.id]
    while True:
        events = engine.step()
        engine.check()
        if events:
            break
    rows = [sequence.cache.gather(layer) for layer in range(len(sequence.cache.pages))]
    assert sequence.report is not None
    engine.abort(request.id)
    engine.step()
    token = events[0].token_id
    assert token is not None
    return token, rows, sequence.report.cached_tokens


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether the caches hold the same rows, up to the rounding of sums in another order."""
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(first, second, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_follow_up_keeps_and_answers_what_a_fresh_prompt_would(method: str) -> None:
    policy = CachePolicy(method, keep=None if method == "full" else 0.3)
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    for seed in range(2):
        talk = Conversation.begin(seed, num_images=10)
        for turn in range(3):
            request = talk.prompt().request(f"{seed}-{turn}", policy, max_tokens=2)
            token, rows, reused = prefilled(engine, request)
            fresh = replace(request, id=f"fresh {seed}-{turn}", reuse="none")
            expected_token, expected, none = prefilled(engine, fresh)
            assert (token, none) == (expected_token, 0)
            assert same(rows, expected)
            assert reused % BLOCK_TOKENS == 0
            assert bool(reused) == (turn > 0 and method not in AFRESH), (turn, reused)
            talk.turn(num_images=turn)
    assert engine._prompts.store.num_pins == 0


@pytest.mark.parametrize("policy", ["h2o@0.3", *(f"{name}@0.3" for name in AFTER_IMAGES)])
def test_without_the_known_rows_sums_another_cache_is_kept(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """The control: the comparison above sees sums that are missing."""
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    talk = Conversation.begin(1, num_images=10)
    prefilled(engine, talk.prompt().request("first", policy))
    talk.turn()
    request = talk.prompt().request("second", policy)
    _, right, _ = prefilled(engine, request)
    monkeypatch.setattr(type(engine._prompts), "seen", lambda *_: {})
    _, wrong, reused = prefilled(engine, replace(request, id="third"))
    assert reused
    assert not same(right, wrong)


@pytest.mark.parametrize("method", AFTER_IMAGES)
def test_what_follows_the_images_is_known_until_another_image_comes(method: str) -> None:
    """Its sums add up like any other: a tenth turn does not compute nine turns again."""
    engine = tiny_engine(tiny_llava(max_positions=2048), prompt_store_bytes=2**26, parking=False)
    talk = Conversation.begin(3, num_images=4)
    for turn in range(5):
        request = talk.prompt().request(str(turn), CachePolicy(method, keep=0.3))
        token, rows, reused = prefilled(engine, request)
        fresh = replace(request, id=f"fresh {turn}", reuse="none")
        expected_token, expected, _ = prefilled(engine, fresh)
        assert token == expected_token
        assert same(rows, expected)
        images_end = len(talk.ids) - talk.ids[::-1].index(IMAGE)
        if turn == 3:  # asked with another image
            assert reused <= images_end
        elif turn > 1:
            assert reused > images_end
            assert len(talk.ids) - reused < 80 + 2 * BLOCK_TOKENS
        talk.turn(num_images=turn == 2, text=60)
    assert engine._prompts.store.num_pins == 0


@pytest.mark.parametrize("method", AFTER_IMAGES)
def test_a_prompt_without_images_leaves_no_sums_of_rows_after_them(method: str) -> None:
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    talk = Conversation.begin(4, num_images=0, text=300)
    for turn in range(3):
        request = talk.prompt().request(str(turn), CachePolicy(method, keep=0.3))
        found = prefilled(engine, request)
        expected = prefilled(engine, replace(request, id=f"fresh {turn}", reuse="none"))
        assert found[0] == expected[0]
        assert same(found[1], expected[1])
        talk.turn(text=60, num_images=turn)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 12))]
)
def test_conversations_in_any_mix_are_answered_as_afresh(seed: int) -> None:
    """Turns of several conversations together, policies that change, branches, aborts, a store that
    is too small: every answer is that of an engine without a store."""
    rng = random.Random(seed)
    store = rng.choice([2**18, 2**20, 2**26])
    engine = tiny_engine(
        tiny_llava(max_positions=1024),
        prompt_store_bytes=store,
        max_step_tokens=rng.choice([100, 2048]),
        kv_cache_bytes=2**22,
    )
    plain = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=0)
    talks = [Conversation.begin(100 * seed + i, rng.randrange(0, 8)) for i in range(3)]
    for turn in range(3):
        requests = []
        for i, talk in enumerate(talks):
            for branch in range(rng.choice([1, 1, 2])):
                method = rng.choice(METHODS)
                policy = CachePolicy(method, keep=None if method == "full" else 0.3)
                name = f"{turn}-{i}-{branch}"
                requests.append(talk.prompt().request(name, policy, max_tokens=4))
            talk.turn(num_images=rng.randrange(3), text=rng.randrange(5, 80))
        gone = talks[0].prompt().request("gone", "look-m@0.3", max_tokens=4)
        engine.add(gone)
        engine.step()
        engine.abort("gone")
        engine.step()
        got = answers(engine, requests, every=rng.choice([0, 1]))
        assert got == answers(plain, requests)
    assert engine._prompts.store.num_pins == 0
    assert engine.stats().prompt_store_bytes <= store


def test_full_equals_generate_in_every_turn() -> None:
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    talk = Conversation.begin(3, num_images=4)
    for turn in range(3):
        prompt = talk.prompt()
        got = answers(engine, [prompt.request(str(turn), max_tokens=6)])[str(turn)]
        assert got == generate(tiny_llava(max_positions=1024), prompt, 6)
        talk.turn(num_images=1)
    stats = engine.stats()
    assert stats.prompt_store_hit_tokens_total > 0.4 * stats.prompt_store_query_tokens_total


def test_twelve_who_ask_about_the_same_images_compute_them_once() -> None:
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    talk = Conversation.begin(5, num_images=20)
    requests = []
    for user in range(12):
        ids = (*talk.ids, *talk.words(15))
        prompt = Prompt(ids, tuple(talk.pixels))
        requests.append(prompt.request(str(user), "look-m@0.3", max_tokens=3))
    answers(engine, requests)
    stats = engine.stats()
    shared = len(talk.ids) // BLOCK_TOKENS * BLOCK_TOKENS
    assert stats.prompt_store_hit_tokens_total >= 11 * (shared - BLOCK_TOKENS)


def test_other_salts_and_other_pictures_share_nothing() -> None:
    engine = tiny_engine(tiny_llava(max_positions=1024), prompt_store_bytes=2**26, parking=False)
    talk, other = Conversation.begin(7, num_images=10), Conversation.begin(8, num_images=10)
    request = talk.prompt().request("a")
    assert prefilled(engine, request)[2] == 0
    assert prefilled(engine, replace(request, id="b", salt="other"))[2] == 0
    assert prefilled(engine, replace(request, id="c"))[2] > 0
    pictures = Prompt(tuple(talk.ids), tuple(other.pixels)).request("d")
    first = talk.ids.index(IMAGE) // BLOCK_TOKENS * BLOCK_TOKENS
    assert prefilled(engine, pictures)[2] <= first


def test_images_in_the_known_beginning_are_not_encoded_again() -> None:
    engine = tiny_engine(
        tiny_llava(max_positions=1024), prompt_store_bytes=2**26, image_cache_bytes=0, parking=False
    )
    talk = Conversation.begin(9, num_images=20, text=90)
    prefilled(engine, talk.prompt().request("a"))
    queries = engine.stats().image_cache_queries_total
    talk.turn(num_images=1)
    _, _, reused = prefilled(engine, talk.prompt().request("b"))
    known = talk.ids[:reused].count(IMAGE) // IMAGE_TOKENS
    assert known > 10
    assert engine.stats().image_cache_queries_total - queries == 21 - known


@pytest.mark.parametrize("name", sorted(TOYS))
@pytest.mark.parametrize("method", ["full", "look-m", "snapkv"])
def test_two_turns_of_every_family(name: str, method: str) -> None:
    toy = TOYS[name]
    engine = tiny_engine(toy.model(), prompt_store_bytes=2**26, parking=False)
    policy = CachePolicy(method, keep=None if method == "full" else 0.3)
    if None not in engine.info.windows and method != "full":
        pytest.skip("a model of windows only runs at full")
    first = prompt(toy, 3, seed=4, text_tokens=80)
    more = random.Random(1)
    second = replace(first, ids=(*first.ids[:-1], *(more.randrange(5, 40) for _ in range(30))))
    prefilled(engine, first.request("first", policy, max_tokens=2))
    queries = engine.stats().image_cache_queries_total
    request = second.request("second", policy, max_tokens=2)
    token, rows, reused = prefilled(engine, request)
    num_again = engine.stats().image_cache_queries_total - queries
    assert num_again == (0 if reused else 3), "images of the known beginning are not looked up"
    expected_token, expected, _ = prefilled(engine, replace(request, id="fresh", reuse="none"))
    assert token == expected_token
    assert same(rows, expected)
    text_follows = toy.row.prefill == "image blocks" and method == "full"
    assert bool(reused) == (toy.row.prefill == "causal" or text_follows)


def test_of_tokens_that_see_each_other_all_are_known_or_none() -> None:
    """Gemma 3: a new image in a later turn begins afresh, text behind all images does not."""
    toy = TOYS["gemma3"]
    for parking in (False, True):
        engine = tiny_engine(toy.model(), prompt_store_bytes=2**26, parking=parking)
        first = prompt(toy, 3, seed=4, text_tokens=80)
        more = prompt(toy, 1, seed=5, text_tokens=70)
        added = replace(first, ids=(*first.ids, *more.ids), images=(*first.images, *more.images))
        text = replace(added, ids=(*added.ids, *[7] * 70))
        for number, (asked, known) in enumerate(((first, False), (added, False), (text, True))):
            request = asked.request(f"{number}", max_tokens=2)
            token, rows, reused = prefilled(engine, request)
            fresh = replace(request, id=f"fresh {number}", reuse="none")
            expected_token, expected, _ = prefilled(engine, fresh)
            assert token == expected_token
            assert same(rows, expected)
            assert bool(reused) == known, (parking, number)
            assert reused == 0 or reused > max(i for i, t in enumerate(asked.ids) if t == IMAGE)


def test_what_a_recipe_needs_says_whether_it_can_reuse() -> None:
    for method in METHODS:
        needs = resolve(CachePolicy(method)).preset.needs
        assert needs.additive == (method not in AFRESH)
