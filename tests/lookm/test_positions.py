"""Positions are the truth: what `lookm.compress` keeps of each layer, and what the pages hold."""

import zlib
from base64 import b64encode
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import lookm
from lookm import CachePolicy, Request, RequestError, TokenEvent, held, positions
from lookm.engine import Engine
from lookm.kept import KeptPositions
from lookm.policy import PRESETS, open_ledger, resolve
from lookm.policy.compose import Compressed
from tests.lookm.models.expected_answer import _prefill
from tests.lookm.models.toys import TOYS, ToyPrompt, prompt
from tests.lookm.test_parking import LOOKM, Chat, engine_for, same
from tests.lookm.tiny import FULL, IMAGE, random_prompt, tiny_engine, tiny_llava

METHODS = sorted(PRESETS)
SOME = ("look-m", "look-m-plus", "d2o", "h2o")
EACH_TILE = {"tile_tokens": 16, "max_step_ms": 0, "prompt_store_bytes": 0}


def policy_of(method: str) -> CachePolicy:
    return CachePolicy(method, keep=None if method == "full" else 0.3)


def asking(request: Request) -> Request:
    return replace(request, positions=True)


def run(engine: Engine, request: Request) -> tuple[KeptPositions, Any, Any]:
    """The positions of a request, each layer's keys when its prompt is done, and the report."""
    engine.add(request)
    sequence, rows, last = engine._sequences[request.id], None, None
    while engine.has_work:
        for event in engine.step():
            assert event.positions is None or event.finish is not None, "only on the last"
            if event.num_generated == 1:
                rows = [sequence.cache.gather(n)[0] for n in range(len(sequence.cache.pages))]
            last = event
        engine.check()
    assert last is not None
    assert last.positions is not None, last
    return last.positions, rows, last.cache


def num_kept(kept: KeptPositions) -> int:
    """The mean over layers and heads, rounded as usage does."""
    return kept.num_tokens - round((~kept.kept_LKT).sum(-1).mean())


def holds(kept: KeptPositions, rows: Any, raw: Any) -> bool:
    """Whether the rows are the raw ones at these positions, head by head."""
    return all(
        same([[rows[layer][head]]], [[raw[layer][head][torch.from_numpy(of_head)]]])
        for layer, of_layer in enumerate(kept.kept_LKT)
        for head, of_head in enumerate(of_layer)
    )


@torch.no_grad()
def compressed(asked: ToyPrompt, policy: CachePolicy) -> list[Compressed]:
    """What `lookm.compress` keeps of each layer of a plain forward pass."""
    is_image = torch.tensor(asked.ids) == IMAGE
    _, layers = _prefill(asked.toy.model(), asked)
    ledger = open_ledger(resolve(policy), is_image, len(layers))
    place = {"num_layers": len(layers), "ledger": ledger}
    return [
        lookm.compress(q, k, v, is_image, policy, scale=scale, layer=layer, **place)
        for layer, (q, k, v, _, _, scale) in enumerate(layers)
    ]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("llava", method) for method in METHODS),
        *((n, m) for n in ("llava_next", "idefics3") for m in ("full", *SOME)),
    ],
)
def test_they_are_what_compress_keeps_and_merges_of_the_same_layer(name: str, method: str) -> None:
    asked, policy = prompt(TOYS[name], 3, seed=5), policy_of(method)
    engine = tiny_engine(TOYS[name].model(), kv_cache_bytes=2**22)
    kept, rows, report = run(engine, asking(asked.request("a", policy, max_tokens=2)))
    assert kept.num_tokens == len(asked.ids)
    expected = compressed(asked, policy)
    for layer, one in enumerate(expected):
        assert np.array_equal(kept.kept_LKT[layer], one.kept_mask.numpy())
        merged = one.merged_mask
        assert (kept.merged_LKT is None) == (merged is None)
        if merged is not None:
            assert np.array_equal(kept.merged_LKT[layer], merged.numpy())
        assert rows[layer].shape[1] == kept.kept_LKT[layer].sum(-1)[0]
    assert report.kept_tokens == num_kept(kept)
    if kept.merged_LKT is not None:
        assert abs(report.merged_tokens - kept.merged_LKT.sum(-1).mean()) <= 1


@pytest.mark.parametrize("method", ["look-m", "snapkv"])
@pytest.mark.parametrize("name", sorted(TOYS))
def test_of_every_family_they_are_the_rows_in_the_pages(name: str, method: str) -> None:
    """Layers with a window too, and prompts whose tokens see later ones."""
    asked = prompt(TOYS[name], 2, seed=3)
    policy = replace(policy_of(method), merge="none")
    whole, raw, _ = run(
        tiny_engine(TOYS[name].model(), kv_cache_bytes=2**22), asking(asked.request("whole"))
    )
    assert whole.kept_LKT.all()
    assert whole.merged is None
    engine = tiny_engine(TOYS[name].model(), kv_cache_bytes=2**22)
    kept, rows, report = run(engine, asking(asked.request("a", policy)))
    assert holds(kept, rows, raw)
    assert report.kept_tokens == num_kept(kept)


@pytest.mark.parametrize("method", ["full", *SOME])
def test_in_tiles_and_beside_others_they_are_the_same(method: str) -> None:
    made, policy = random_prompt(8, seed=8), policy_of(method)
    expected, _, _ = run(tiny_engine(), asking(made.request("a", policy)))
    tiled, _, _ = run(tiny_engine(**EACH_TILE), asking(made.request("a", policy)))
    assert np.array_equal(tiled.kept, expected.kept)
    engine = tiny_engine(kv_cache_bytes=2**23, max_step_tokens=50)
    others = [random_prompt(3, seed=n).request(str(n), policy) for n in range(3)]
    found = {e.request_id: e for e in engine.generate([*others, asking(made.request("a", policy))])}
    assert np.array_equal(found["a"].positions.kept, expected.kept)
    assert all(found[request.id].positions is None for request in others), "who does not ask"


@pytest.mark.parametrize("method", ["full", "look-m", "d2o"])
def test_a_preempted_request_says_what_it_holds_in_the_end(method: str) -> None:
    policy = policy_of(method)
    engine = tiny_engine(kv_cache_bytes=72 * 2 * 2 * 16 * 16 * 4, parking=False)
    requests = [random_prompt(3, n).request(str(n), policy, max_tokens=60) for n in range(6)]
    last: dict[str, TokenEvent] = {
        event.request_id: event for event in engine.generate(map(asking, requests))
    }
    assert engine.stats().preemptions_total > 0
    for request in requests:
        alone, _, _ = run(tiny_engine(), asking(request))
        assert np.array_equal(last[request.id].positions.kept, alone.kept)


def test_a_turn_that_goes_on_exactly_says_what_a_fresh_one_would() -> None:
    for policy in (FULL, LOOKM):
        engine = tiny_engine(
            tiny_llava(max_positions=1024), kv_cache_bytes=2**22, prompt_store_bytes=2**24
        )
        chat = Chat(5)
        first = list(engine.generate([chat.request("first", policy)]))
        chat.go_on([event.token_id for event in first if event.token_id is not None], num_images=1)
        found, _, report = run(engine, asking(chat.request("second", policy)))
        fresh, _, _ = run(engine, asking(chat.request("fresh", policy, reuse="none")))
        assert report.cached_tokens > 0
        assert np.array_equal(found.kept, fresh.kept)
        assert found.num_unknown == 0


@pytest.mark.parametrize("images", [0, 1], ids=["a short question", "a new image"])
def test_a_turn_on_top_of_what_was_kept_says_what_the_device_holds(images: int) -> None:
    """Of three turns, where every one asks, and where the second does not."""
    policy = replace(LOOKM, merge="none")
    for asks in ((True, True, True), (True, False, True), (False, True, True)):
        engine, chat = engine_for(kv_cache_bytes=2**23), Chat(6)
        for turn, positions_too in enumerate(asks):
            request = chat.request(str(turn), policy, reuse="kept", positions=positions_too)
            engine.add(request)
            sequence, events, rows, cached = engine._sequences[request.id], [], [], 0
            while engine.has_work:
                events += engine.step()
                if not rows and events and events[-1].num_generated == 1:
                    rows = [int(count) for count in sequence.cache.kept_L]
                    cached = sequence.report.cached_tokens
            found = events[-1].positions
            assert (found is not None) == positions_too
            assert (cached > 0) == (turn > 0)
            chat.go_on([e.token_id for e in events if e.token_id is not None], num_images=images)
        assert found is not None
        known = found.kept_LKT[..., found.num_unknown :].sum(-1)
        if asks == (True, True, True):
            assert found.num_unknown == 0
            assert all(
                (of_layer == count).all() for of_layer, count in zip(known, rows, strict=True)
            )
        else:
            assert found.num_unknown > 0
            assert not found.kept_LKT[..., : found.num_unknown].any()
            assert all(
                (of_layer <= count).all() for of_layer, count in zip(known, rows, strict=True)
            )


def test_who_does_not_ask_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(held.HeldTokens, "__init__")
    counted(held, "_packed")
    counted(held, "_all")
    counted(Compressed, "_mask")
    counted(KeptPositions, "__init__")
    for method in ("look-m", "d2o", "full"):
        requests = [random_prompt(3, n).request(str(n), policy_of(method)) for n in range(3)]
        assert [e for e in tiny_engine().generate(requests) if e.positions is not None] == []
    assert calls == []
    run(tiny_engine(), asking(random_prompt(3, 1).request("a", LOOKM)))
    assert calls.count("__init__") == 2
    assert calls.count("_packed") == 2 * 3, "kept and merged of three layers"


class Words:
    """Knows what ids show, and where images are."""

    def places(self, ids: Any, images: Any) -> Any:
        return lookm.models.places.places(ids, images, IMAGE)

    def shown(self, ids: Any) -> list[str]:
        return [f" {id}" for id in ids]


def described(name: str, seed: int = 1) -> positions.Positions:
    asked = prompt(TOYS[name], 2, seed)
    bits, _, _ = run(
        tiny_engine(TOYS[name].model(), kv_cache_bytes=2**22),
        asking(asked.request("a", policy_of("look-m"))),
    )
    return positions.describe(bits, asked.ids, asked.images, Words())


@pytest.mark.parametrize("name", ["llava", "pixtral", "idefics3", "gemma3"])
def test_every_token_is_text_or_an_images(name: str) -> None:
    found = described(name)
    tokens = [
        n for run in found.text for n in range(run.first_token, run.first_token + len(run.tokens))
    ]
    for image in found.images:
        tokens += range(image.first_token, image.first_token + image.num_tokens)
    assert sorted(tokens) == list(range(found.num_tokens))


def test_what_is_written_is_read_back() -> None:
    found = described("llava")
    for answer in (
        positions.encode(found),
        {"usage": {"kv_cache": {"positions": positions.encode(found)}}},
    ):
        again = positions.decode(answer)
        assert np.array_equal(again.kept_LKT, found.kept_LKT)
        assert np.array_equal(again.merged_LKT, found.merged_LKT)
        assert (again.images, again.text) == (found.images, found.text)


def test_what_are_no_positions_is_refused() -> None:
    good = positions.encode(described("llava"))
    bomb = b64encode(zlib.compress(bytes(10**7))).decode()
    wrong = [{}, None, 3, "text", {"usage": {"kv_cache": {}}}, good | {"encoding": "runs"}]
    wrong += [good | {"kept": text} for text in ("!", "AAAA", bomb)]
    wrong += [good | {"num_tokens": 9}, good | {"images": [{}]}, good | {"text": 3}]
    for answer in wrong:
        with pytest.raises(RequestError, match="no positions"):
            positions.decode(answer)


def test_a_long_prompt_of_a_large_model_packs_within_its_bound() -> None:
    """32 layers of 32 heads, 32k tokens, a fifth kept at random: the worst there is."""
    generator = np.random.default_rng(0)
    rows_LKT = generator.random((32, 32, 2**15), dtype=np.float32) < 0.2
    bits = KeptPositions(2**15, np.packbits(rows_LKT, axis=-1))
    written = positions.encode(positions.Positions(bits))
    assert len(written["kept"]) < 4 / 3 * bits.kept.nbytes
    assert np.array_equal(positions.decode(written | {"text": [], "images": []}).kept_LKT, rows_LKT)
