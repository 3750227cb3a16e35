"""Three hundred random conversations: answers and prompts' rows are those of fresh ones."""

import random
from dataclasses import replace
from typing import Any

import pytest

from lookm import CachePolicy
from lookm.policy import PRESETS
from tests.lookm.test_parking import Chat, ask, same
from tests.lookm.tiny import tiny_engine, tiny_llava

METHODS = sorted(PRESETS)


def policy_of(method: str, rng: random.Random) -> CachePolicy:
    return CachePolicy(method, keep=None if method == "full" else rng.choice([0.2, 0.3, 0.5]))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 30))]
)
def test_ten_conversations_by_turns(seed: int) -> None:
    """One to six turns, images in any, policies that change, branches, aborts, evictions."""
    rng = random.Random(seed)
    engine: Any = tiny_engine(
        tiny_llava(max_positions=2048),
        max_context_tokens=2048,
        kv_cache_bytes=rng.choice([2**20, 2**22]),
        prompt_store_bytes=rng.choice([2**20, 2**22, 2**26]),
        tile_tokens=rng.choice([0, 16, 64]),
        max_step_ms=0,
    )
    chats = [Chat(1000 * seed + i, num_images=rng.randrange(0, 6)) for i in range(10)]
    turns = [rng.randint(1, 6) for _ in chats]
    hits = 0
    for turn in range(6):
        for i, chat in enumerate(chats):
            if turn >= turns[i] or len(chat.ids) > 900:
                continue
            policy = policy_of(rng.choice(METHODS), rng)
            request = chat.request(f"{turn}-{i}", policy)
            if rng.random() < 0.3:
                engine.add(replace(request, id="gone"))
                for _ in range(rng.randrange(8)):
                    engine.step()
                engine.abort("gone")
                engine.step()
            found = ask(engine, request)
            fresh = ask(engine, replace(request, id="fresh", reuse="none"))
            assert found.tokens == fresh.tokens, (seed, turn, i, policy)
            assert same(found.rows, fresh.rows), (seed, turn, i, policy)
            hits += found.cached
            if rng.random() < 0.8:  # else the next turn is another branch of this one
                chat.go_on(found.tokens, num_images=rng.choice([0, 0, 1, 3]))
    assert hits
    assert engine._prompts.store.num_pins == 0
    engine._parking.clear()
    assert engine._pool.num_used == 0
