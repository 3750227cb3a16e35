"""Elastic budgets: what is taken when a request starts, and that nobody waits for it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookm import CachePolicy, PolicyError
from lookm.elastic import LEVELS, Elastic, highest
from lookm.errors import PromptTooLongError, QueueFullError
from lookm.policy import resolve
from tests.lookm.test_parking import Chat, engine_for
from tests.lookm.tiny import answers, random_prompt, tiny_engine

PAGE_BYTES = 2 * 2 * 4 * 16 * 4  # K and V, 2 heads, 4 rows of 16 numbers
ELASTIC = CachePolicy("h2o", keep=0.5, keep_min=0.1)
PROMPT = random_prompt(8, seed=1)  # 72 image tokens and some text
SHORT: dict[str, Any] = {"max_tokens": 4}


def engine(num_pages: int, **config: Any) -> Any:
    """Of 3 layers and pages of 4 rows."""
    config = {"page_tokens": 4, "kv_cache_bytes": num_pages * PAGE_BYTES, **config}
    config = {"tile_tokens": 0, "max_step_tokens": 4096, **config}
    return tiny_engine(prompt_store_bytes=0, parking=False, **config)


def pages(keep: float, max_tokens: int = 4) -> int:
    """Pages that such a conversation has at its end."""
    recipe = resolve(CachePolicy("h2o", keep=keep))
    rows = recipe.preset.budget(recipe.policy, len(PROMPT.ids)).total + max_tokens
    return 3 * -(-rows // 4)


def started(engine: Any, number: int, policy: Any = ELASTIC, **more: Any) -> list[float]:
    """The fractions that so many which come together take, all of whom start at once."""
    for n in range(number):
        engine.add(replace(PROMPT.request(f"r{n}", policy, **SHORT), **more))
    engine.step()
    engine.check()
    assert engine.stats().waiting == 0
    return [sequence.recipe.policy.keep for sequence in engine._scheduler.running]


def test_one_alone_takes_its_most() -> None:
    assert started(engine(pages(0.5)), 1) == [0.5]


@pytest.mark.parametrize(("low", "high"), [(1e-6, 2e-5), (0.123456, 0.123457), (0.29996, 0.3)])
def test_a_narrow_range_is_not_left_at_any_level(low: float, high: float) -> None:
    asked = resolve(CachePolicy("h2o", keep=high, keep_min=low))
    elastic = Elastic(asked, lambda recipe: np.array([1]), lambda rows_L: True)
    keeps = [elastic.at(level)[0].policy.keep or 0 for level in range(LEVELS + 1)]
    assert (keeps[0], keeps[-1]) == (low, high)
    assert keeps == sorted(keeps)


def test_one_alone_in_a_pool_too_small_for_its_most_takes_what_that_holds() -> None:
    (keep,) = started(engine(pages(0.3)), 1)
    assert 0.27 <= keep <= 0.3


def test_what_does_not_fit_at_its_least_is_refused_and_what_fits_is_not() -> None:
    small = engine(pages(0.1) - 3)
    with pytest.raises(PromptTooLongError, match="keep less"):
        small.add(PROMPT.request("a", ELASTIC, **SHORT))
    assert started(engine(pages(0.1)), 1) == [0.1]


def test_a_burst_shares_evenly_what_is_free_and_nobody_waits() -> None:
    """At its most the pool holds two of them."""
    num_pages = 2 * pages(0.5)
    taken = started(engine(num_pages), 4)
    assert 0.1 < min(taken) < 0.5
    assert max(taken) - min(taken) < 0.1  # what rounding to pages leaves is the later ones'
    most = num_pages // pages(0.1)
    assert most > 4
    assert set(started(engine(num_pages), most)) <= {0.1, 0.125, 0.15}


def test_where_even_the_least_does_not_fit_it_waits() -> None:
    small = engine(2 * pages(0.5))
    most = 2 * pages(0.5) // pages(0.1, max_tokens=0)
    requests = [PROMPT.request(f"r{n}", ELASTIC, **SHORT) for n in range(most + 2)]
    for request in requests:
        small.add(request)
    small.step()
    assert small.stats().waiting >= 2
    while small.has_work:
        small.step()
        small.check()
    assert small.stats().used_bytes == 0


def test_who_waits_with_a_fixed_fraction_starts_as_well() -> None:
    pool = engine(pages(0.5) + pages(1.0))
    for name, policy in (("a", ELASTIC), ("b", ELASTIC), ("fixed", CachePolicy())):
        pool.add(PROMPT.request(name, policy, **SHORT))
    pool.step()
    assert pool.stats().waiting == 0
    assert [s.recipe.policy.keep for s in pool._scheduler.running][-1] is None


def test_who_is_known_to_be_coming_has_room_when_it_comes() -> None:
    pool = engine(2 * pages(0.5))
    (first,) = started(pool, 1, num_coming=3)
    assert first < 0.3
    for n in range(3):
        pool.add(replace(PROMPT.request(f"later {n}", ELASTIC, **SHORT), num_coming=2 - n))
        pool.step()
        assert pool.stats().waiting == 0


def test_places_bound_who_is_coming() -> None:
    assert started(engine(2 * pages(0.5), max_running=2), 1, num_coming=300) == [0.5]


def test_a_running_request_is_not_touched_and_keeps_room_for_its_answer() -> None:
    """A newcomer takes no page that a running answer will need: nobody is preempted for it."""
    pool = engine(pages(0.5, max_tokens=40) + pages(0.3, max_tokens=40))
    pool.add(PROMPT.request("first", ELASTIC, max_tokens=40))
    pool.step()
    (first,) = pool._scheduler.running
    before = first.cache.kept_L.copy()
    pool.add(PROMPT.request("second", ELASTIC, max_tokens=40))
    pool.step()
    assert (first.cache.kept_L == before + 1).all()
    first, second = pool._scheduler.running
    assert (first.recipe.policy.keep, second.recipe.policy.keep < 0.35) == (0.5, True)
    while pool.has_work:
        pool.step()
    assert pool.stats().preemptions_total == 0


@pytest.mark.parametrize("group", ["", "one request"])
def test_choices_of_one_request_keep_the_same(group: str) -> None:
    """Alone, the later ones get what rounding to pages has left."""
    taken = started(engine(2 * pages(0.5) + 4), 5, group=group)
    assert (len(set(taken)) == 1) or not group
    pool = engine(2 * pages(0.5), max_running=2)
    for n in range(2):
        pool.add(replace(PROMPT.request(f"r{n}", ELASTIC, **SHORT), group="g", num_coming=1))
        while pool.has_work:
            events = pool.step()
        assert events[-1].cache.policy.keep == 0.5
        assert events[-1].cache.elastic == resolve(ELASTIC).policy


def test_what_was_taken_is_what_a_fixed_request_of_that_fraction_answers() -> None:
    """Also through preemptions: it is computed again at the same fraction."""
    pool = engine(6 * pages(0.1, 30) // 2)
    requests = [PROMPT.request(f"r{n}", ELASTIC, max_tokens=30) for n in range(6)]
    kept: dict[str, Any] = {}
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        pool.add(request)
    while pool.has_work:
        for event in pool.step():
            tokens[event.request_id].append(event.token_id or 0)
            if event.cache:
                keep = event.cache.policy.keep
                assert kept.setdefault(event.request_id, keep) == keep
        pool.check()
    assert pool.stats().preemptions_total > 0
    for name, answer in tokens.items():
        fixed = CachePolicy("h2o", keep=kept[name])
        alone = answers(tiny_engine(), [PROMPT.request("x", fixed, max_tokens=30)])
        assert answer == alone["x"]


def ask(pool: Any, request: Any) -> tuple[list[int], Any]:
    """The tokens of one alone, and what was kept of it."""
    pool.add(request)
    found, events = [], []
    while pool.has_work:
        events = pool.step()
        found += [event.token_id for event in events]
        pool.check()
    return found, events[-1].cache


def test_a_range_up_to_all_reuses_exactly_and_as_kept() -> None:
    policy = CachePolicy("h2o", keep=1.0, keep_min=0.2)
    pool, chat = engine_for(), Chat(1)
    answer, report = ask(pool, chat.request("first", policy, reuse="kept"))
    assert report.policy.keep == 1.0
    chat.go_on(answer)
    _, exact = ask(pool, chat.request("second", policy))
    assert exact.cached_tokens > 0
    assert not exact.compressed
    fresh, again = (ask(pool, chat.request(n, policy, reuse="none")) for n in ("fresh", "again"))
    assert fresh[0] == again[0]


def test_a_conversation_goes_on_from_what_was_kept_whatever_fraction_that_was() -> None:
    policy = CachePolicy("look-m", keep=0.5, keep_min=0.1)
    pool, chat = engine_for(kv_cache_bytes=2**20), Chat(2)
    answer, first = ask(pool, chat.request("first", policy, reuse="kept", num_coming=10**6))
    chat.go_on(answer)
    _, second = ask(pool, chat.request("second", policy, reuse="kept"))
    assert first.policy.keep < 0.5 == second.policy.keep
    assert second.cached_tokens > 0


def test_a_burst_of_more_than_fit_counts_at_its_least_for_the_queue() -> None:
    pool, most = engine(2 * pages(0.5), max_waiting=1), 2 * pages(0.5) // pages(0.1, 0)
    for n in range(most + 1):
        pool.add(PROMPT.request(f"r{n}", ELASTIC, **SHORT))
    with pytest.raises(QueueFullError):
        pool.add(PROMPT.request("one more", ELASTIC, **SHORT))


def test_the_highest_level_is_found_wherever_it_is() -> None:
    for edge in range(LEVELS + 1):
        assert highest(edge.__ge__, LEVELS) == edge


def test_a_policy_that_the_model_refuses_at_its_least_is_refused() -> None:
    with pytest.raises(PolicyError, match="smaller one"):
        tiny_engine().add(PROMPT.request("a", replace(ELASTIC, keep_min=0.7)))
