"""A conversation's pages stay between turns: exact at full, and by request what was kept before."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lookm import CachePolicy, Request
from lookm.engine import Engine
from tests.lookm.models.toys import TOYS, prompt
from tests.lookm.test_conversations import Conversation
from tests.lookm.tiny import FULL, IMAGE, Prompt, answers, generate, tiny_engine, tiny_llava

LOOKM = CachePolicy("look-m", keep=0.3)


@dataclass
class Turn:
    tokens: list[int]
    rows: list[Any]
    cached: int
    kept: int


def ask(engine: Engine, request: Request) -> Turn:
    """Run a request to its end; its tokens, and the rows of its prompt."""
    engine.add(request)
    sequence, tokens, rows = engine._sequences[request.id], [], []
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                if not tokens:
                    layers = range(len(sequence.cache.pages))
                    rows = [sequence.cache.gather(layer) for layer in layers]
                tokens.append(event.token_id)
        engine.check()
    assert sequence.report is not None
    return Turn(tokens, rows, sequence.report.cached_tokens, sequence.report.kept_tokens)


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether the caches hold the same rows but for rounding: a decode step adds up otherwise."""
    return all(
        a.shape == b.shape and (a - b).abs().max() < 1e-5 * b.abs().max()
        for mine, theirs in zip(first, second, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def engine_for(model: Any = None, **config: Any) -> Engine:
    config = {"prompt_store_bytes": 0, "kv_cache_bytes": 2**22, **config}
    return tiny_engine(model or tiny_llava(max_positions=1024), **config)


class Chat:
    """A conversation whose turns carry the answers as they were given."""

    def __init__(self, seed: int, num_images: int = 6) -> None:
        self._talk = Conversation.begin(seed, num_images=num_images, text=20)
        self.ids = list(self._talk.ids)
        self.pixels = list(self._talk.pixels)

    def request(self, name: str, policy: CachePolicy = FULL, **more: Any) -> Request:
        made = Prompt(tuple(self.ids), tuple(self.pixels)).request(name, policy, max_tokens=6)
        return replace(made, **more)

    def go_on(self, answer: list[int], num_images: int = 0) -> None:
        before = len(self._talk.ids)
        self._talk.turn(num_images=num_images, text=15)
        words = [7 if token == IMAGE else token for token in answer]
        self.ids += [*words, *self._talk.ids[before + 11 :]]
        self.pixels = list(self._talk.pixels)


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_at_full_an_answer_is_gone_on_from_exactly(graphs: Any) -> None:
    engine, chat = engine_for(graphs=graphs), Chat(1)
    known = 0
    for turn in range(4):
        found = ask(engine, chat.request(str(turn)))
        made = Prompt(tuple(chat.ids), tuple(chat.pixels))
        assert found.tokens == generate(tiny_llava(max_positions=1024), made, 6)
        fresh = ask(engine, chat.request(f"fresh {turn}", reuse="none"))
        assert same(found.rows, fresh.rows)
        assert found.cached == known
        known = len(chat.ids) + len(found.tokens) - 1  # the last one was never computed
        chat.go_on(found.tokens, num_images=turn % 2)
    assert engine.stats().parked_conversations == 1
    assert engine.stats().used_bytes == 0


def test_an_answer_that_is_rendered_otherwise_is_gone_on_from_as_far_as_it_is_the_same() -> None:
    engine, chat = engine_for(), Chat(2)
    first = ask(engine, chat.request("first"))
    same_until = len(chat.ids) + 2
    chat.go_on([*first.tokens[:2], 7, 8, 9])
    found = ask(engine, chat.request("second"))
    assert found.cached == same_until
    assert same(found.rows, ask(engine, chat.request("fresh", reuse="none")).rows)


def test_a_compressed_conversation_is_gone_on_from_only_by_request() -> None:
    engine, chat = engine_for(), Chat(3)
    first = ask(engine, chat.request("first", LOOKM))
    chat.go_on(first.tokens)
    assert ask(engine, chat.request("exact", LOOKM)).cached == 0
    assert ask(engine, chat.request("other", replace(LOOKM, keep=0.5), reuse="kept")).cached == 0
    found = ask(engine, chat.request("kept", LOOKM, reuse="kept"))
    assert found.cached > 0


def test_what_is_kept_stays_and_the_question_is_computed_against_it() -> None:
    """The rows of the second turn are those that transformers computes over the first's."""
    engine, chat = engine_for(), Chat(4)
    first = ask(engine, chat.request("first", LOOKM, reuse="kept"))
    num_first = len(chat.ids)
    parked = engine._parking._parked[-1].cache
    held = [parked.gather(layer) for layer in range(len(parked.pages))]
    chat.go_on(first.tokens)
    second = ask(engine, chat.request("second", LOOKM, reuse="kept"))
    known = num_first + len(first.tokens) - 1
    assert second.cached == known

    model = tiny_llava(max_positions=1024)
    past = DynamicCache()
    for layer, (k, v) in enumerate(held):
        past.update(k[None], v[None], layer)
    new = torch.tensor([chat.ids[known:]])
    rows = held[0][0].shape[1] + new.shape[1]
    with torch.no_grad():
        out = model.model.language_model(
            input_ids=new,
            past_key_values=past,
            position_ids=torch.arange(known, len(chat.ids))[None],
            attention_mask=torch.ones(1, rows, dtype=torch.long),
        )
        token = int(model.lm_head(out.last_hidden_state[0, -1]).argmax())
    expected = [(layer.keys[0], layer.values[0]) for layer in past.layers]
    assert same(second.rows, expected)
    assert second.tokens[0] == token
    assert second.kept == first.kept + len(chat.ids) - num_first


@pytest.mark.parametrize("method", ["look-m", "look-m-plus", "snapkv", "h2o", "pyramidkv", "d2o"])
def test_new_pictures_are_compressed_by_themselves(method: str) -> None:
    engine, chat, policy = engine_for(), Chat(5), CachePolicy(method, keep=0.4)
    first = ask(engine, chat.request("first", policy, reuse="kept"))
    held = [rows for rows, _ in first.rows]
    chat.go_on(first.tokens, num_images=4)
    second = ask(engine, chat.request("second", policy, reuse="kept"))
    new = len(chat.ids) - second.cached
    for (now, _), before in zip(second.rows, held, strict=True):
        assert torch.equal(now[:, : before.shape[1]], before)
        added = now.shape[1] - before.shape[1] - (len(first.tokens) - 1)
        assert 0 < added < new
    chat.go_on(second.tokens)
    third = ask(engine, chat.request("third", policy, reuse="kept"))
    assert third.cached == len(chat.ids) - (len(chat.ids) - third.cached)
    assert third.cached > second.cached


def test_without_a_conversation_to_go_on_from_kept_is_exact() -> None:
    chat = Chat(6)
    kept = ask(engine_for(), chat.request("kept", LOOKM, reuse="kept"))
    exact = ask(engine_for(), chat.request("exact", LOOKM))
    assert kept.tokens == exact.tokens
    assert same(kept.rows, exact.rows)


def test_other_pictures_other_salts_and_none_go_on_from_nothing() -> None:
    engine, chat, other = engine_for(), Chat(7), Chat(8)
    first = ask(engine, chat.request("first"))
    chat.go_on(first.tokens)
    assert ask(engine, chat.request("salt", salt="other")).cached == 0
    assert ask(engine, chat.request("none", reuse="none")).cached == 0
    pictures = chat.request("pictures")
    pictures = replace(pictures, images=(*other.request("x").images[:6],))
    assert len(pictures.images) == len(chat.pixels)
    assert ask(engine, pictures).cached == 0
    assert ask(engine, chat.request("second")).cached > 0


def test_parked_pages_go_before_anybody_waits() -> None:
    """A pool for three conversations: the fourth takes the place of the one unused for longest."""
    chats = [Chat(seed) for seed in range(10, 15)]
    one = engine_for()
    ask(one, chats[0].request("one"))
    engine = engine_for(kv_cache_bytes=7 * one.stats().parked_bytes // 2)
    for i, chat in enumerate(chats):
        ask(engine, chat.request(str(i)))
        assert engine.stats().parked_bytes + engine.stats().used_bytes <= engine.plan.capacity_bytes
    assert 1 <= engine.stats().parked_conversations <= 3
    assert engine._parking.num_dropped >= 2
    assert engine.stats().preemptions_total == 0
    engine._parking.clear()
    assert engine._pool.num_used == 0


def test_two_who_go_on_from_one_conversation_are_both_right() -> None:
    engine, chat = engine_for(), Chat(16)
    first = ask(engine, chat.request("first"))
    chat.go_on(first.tokens)
    requests = [chat.request(name) for name in "ab"]
    got = answers(engine, requests)
    made = Prompt(tuple(chat.ids), tuple(chat.pixels))
    expected = generate(tiny_llava(max_positions=1024), made, 6)
    assert got == {"a": expected, "b": expected}


def test_parking_can_be_turned_off() -> None:
    engine, chat = engine_for(parking=False), Chat(17)
    first = ask(engine, chat.request("first"))
    assert engine._pool.num_used == 0
    chat.go_on(first.tokens)
    assert ask(engine, chat.request("second")).cached == 0


def test_what_was_gone_on_from_comes_to_the_store_as_well() -> None:
    engine, chat = engine_for(prompt_store_bytes=2**24), Chat(18, num_images=20)
    first = ask(engine, chat.request("first"))
    chat.go_on(first.tokens)
    ask(engine, chat.request("second"))
    engine._parking.clear()
    third = ask(engine, chat.request("third"))
    assert third.cached == (len(chat.ids) - 1) // 64 * 64
    assert same(third.rows, ask(engine, chat.request("fresh", reuse="none")).rows)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 8))]
)
def test_any_mix_leaves_the_pool_whole(seed: int) -> None:
    """Small pools, aborts, preemptions, all kinds of reuse: the exact ones answer as afresh."""
    rng = random.Random(seed)
    engine = engine_for(
        kv_cache_bytes=rng.choice([2**18, 2**19, 2**21]),
        prompt_store_bytes=rng.choice([0, 2**20]),
        max_step_tokens=rng.choice([64, 2048]),
    )
    plain = engine_for(parking=False)
    chats = [Chat(100 * seed + i, num_images=rng.randrange(1, 6)) for i in range(4)]
    for turn in range(3):
        requests = []
        for i, chat in enumerate(chats):
            policy = rng.choice([FULL, LOOKM, CachePolicy("snapkv", keep=0.4)])
            reuse = rng.choice(["exact", "kept", "none"])
            requests.append(chat.request(f"{turn}-{i}", policy, reuse=reuse))
        engine.add(chats[0].request("gone", LOOKM, reuse="kept"))
        engine.step()
        engine.abort("gone")
        got = answers(engine, [*requests], every=rng.choice([0, 1])) if engine.step() else None
        assert got is not None
        exact = [request for request in requests if request.reuse != "kept"]
        expected = answers(plain, exact)
        assert {name: got[name] for name in expected} == expected
        for i, chat in enumerate(chats):
            chat.go_on(got[f"{turn}-{i}"], num_images=rng.randrange(2))
    engine._parking.clear()
    assert engine._pool.num_used == 0


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_family_goes_on_from_its_answer(name: str) -> None:
    toy = TOYS[name]
    engine = tiny_engine(toy.model(), prompt_store_bytes=0)
    first = prompt(toy, 2, seed=4, text_tokens=20)
    found = ask(engine, first.request("first", max_tokens=5))
    ids = (*first.ids, *found.tokens, *(5 + i for i in range(11)))
    second = replace(first, ids=ids).request("second", max_tokens=4)
    again = ask(engine, second)
    fresh = ask(engine, replace(second, id="fresh", reuse="none"))
    assert again.tokens == fresh.tokens
    assert same(again.rows, fresh.rows)
    assert bool(again.cached) == (toy.row.prefill != "prefix")
    if None not in engine.info.windows or not toy.row.causal(has_images=True):
        return
    kept = {"policy": LOOKM, "reuse": "kept"}
    first_kept = ask(engine, replace(first.request("k1", max_tokens=5), **kept))
    more = replace(first, ids=(*first.ids, *first_kept.tokens, *(5 + i for i in range(11))))
    assert ask(engine, replace(more.request("k2", max_tokens=4), **kept)).cached > 0


def first_answer(engine: Engine, chat: Chat, policy: CachePolicy, **more: Any) -> None:
    chat.go_on(ask(engine, chat.request("first", policy, **more)).tokens)


def test_a_follow_up_that_is_aborted_leaves_the_conversation_to_the_next_try() -> None:
    for policy, reuse in ((FULL, "exact"), (LOOKM, "kept")):
        for steps in (1, 2, 4):
            engine, chat = engine_for(max_step_tokens=10, tile_tokens=0), Chat(20)
            first_answer(engine, chat, policy, reuse=reuse)
            engine.add(chat.request("gone", policy, reuse=reuse))
            for _ in range(steps):
                engine.step()
                engine.check()
            engine.abort("gone")
            engine.step()
            engine.check()
            again = ask(engine, chat.request("again", policy, reuse=reuse))
            assert again.cached >= len(chat.ids) - 30
            if policy == FULL:
                assert same(again.rows, ask(engine, chat.request("f", reuse="none")).rows)


def test_several_choices_go_on_from_what_was_kept() -> None:
    engine, chat = engine_for(), Chat(21)
    first_answer(engine, chat, LOOKM, reuse="kept")
    got = answers(engine, [chat.request(name, LOOKM, reuse="kept") for name in "abc"])
    assert got["a"] == got["b"] == got["c"]
    assert ask(engine, chat.request("later", LOOKM, reuse="kept")).tokens == got["a"]


def test_a_conversation_that_outgrows_the_pool_is_computed_afresh_and_stops_nobody() -> None:
    engine, chat, policy = engine_for(kv_cache_bytes=2**18), Chat(22), CachePolicy("snapkv", 0.2)
    for turn in range(10):
        found = ask(engine, chat.request(str(turn), policy, reuse="kept"))
        other = random.Random(turn).randrange(100)
        ask(engine, Chat(other, num_images=1).request(f"other {turn}"))
        chat.go_on(found.tokens)
        if len(chat.ids) > 400:
            break
    assert turn > 3


def test_an_image_id_in_an_answer_is_no_picture() -> None:
    engine, chat = engine_for(), Chat(23, num_images=1)
    first = chat.request("first")
    sampling = replace(first.sampling, logit_bias=((IMAGE, 100.0),), max_tokens=10)
    answer = ask(engine, replace(first, sampling=sampling)).tokens
    assert answer == [IMAGE] * 10
    ids = (*chat.ids, *answer[:9], 5, 6, 7)
    pixels = (*chat.pixels, Chat(24, num_images=1).pixels[0])
    second = Prompt(ids, pixels).request("second", max_tokens=4)
    found = ask(engine, second)
    fresh = ask(engine, replace(second, id="fresh", reuse="none"))
    assert found.cached <= len(chat.ids)
    assert found.tokens == fresh.tokens
    assert same(found.rows, fresh.rows)


def test_what_was_answered_before_a_stop_is_gone_on_from() -> None:
    engine, chat = engine_for(), Chat(25)
    engine.add(chat.request("stopped"))
    tokens: list[int] = []
    while len(tokens) < 3:
        tokens += [event.token_id for event in engine.step() if event.token_id is not None]
    engine.abort("stopped")
    engine.step()
    known = len(chat.ids) + 2
    chat.go_on(tokens)
    assert ask(engine, chat.request("second")).cached == known


def test_a_compressed_prompt_whose_last_tokens_are_rendered_otherwise_is_gone_on_from() -> None:
    for method in ("look-m", "snapkv", "h2o", "streaming"):
        engine, chat = engine_for(), Chat(26, num_images=12)
        policy = CachePolicy(method, keep=0.4)
        first = ask(engine, chat.request("first", policy, reuse="kept"))
        num_first = len(chat.ids)
        chat.ids[-2:] = [8, 9]
        chat.go_on(first.tokens)
        found = ask(engine, chat.request("second", policy, reuse="kept"))
        assert found.cached == num_first - 2
        for (now, _), (before, _) in zip(found.rows, first.rows, strict=True):
            assert torch.equal(now[:, : before.shape[1] - 2], before[:, :-2])
