"""`Engine.generate`: requests in, events out, and nothing left behind."""

import itertools
from typing import Any

import pytest

from lookm import CachePolicy, PolicyError, RequestError
from tests.lookm.tiny import generate, random_prompt, tiny_engine, tiny_llava


def test_events_come_as_they_are_made_and_add_up_to_the_answers() -> None:
    prompts = {str(n): random_prompt(n, seed=n) for n in range(3)}
    engine = tiny_engine()
    tokens = {id: [] for id in prompts}
    order = []
    for event in engine.generate(prompt.request(id) for id, prompt in prompts.items()):
        tokens[event.request_id].append(event.token_id)
        order.append(event.request_id)
    assert tokens == {id: generate(tiny_llava(), prompt, 12) for id, prompt in prompts.items()}
    assert order[0] == "0"
    assert set(order[:9]) == {"0", "1", "2"}, "together: an image is encoded a step"


def test_closing_early_frees_every_page_and_leaves_no_events() -> None:
    engine = tiny_engine()
    stream = engine.generate([random_prompt(2, seed=n).request(str(n)) for n in range(4)])
    for _ in range(6):
        next(stream)
    assert engine.stats().used_bytes > 0
    stream.close()
    engine.check()
    assert engine.stats().used_bytes == 0
    assert not engine.has_work
    again = list(engine.generate([random_prompt(0, seed=9).request("0")]))
    assert {event.request_id for event in again} == {"0"}


def test_closing_leaves_other_requests_running() -> None:
    engine = tiny_engine()
    engine.add(random_prompt(1, seed=1).request("other"))
    stream = engine.generate([random_prompt(2, seed=2).request("mine")])
    next(stream)
    stream.close()
    rest = [event for _ in range(12) for event in engine.step()]
    assert {event.request_id for event in rest} == {"other"}
    assert rest[-1].finish == "length"


def test_closing_leaves_a_later_request_of_the_same_id_running() -> None:
    engine = tiny_engine()
    short, long = (
        random_prompt(0, seed=1).request(id, max_tokens=n) for id, n in (("a", 1), ("b", 9))
    )
    stream = engine.generate([short, long])
    assert next(stream).finish == "length"
    engine.add(short)
    stream.close()
    assert [(event.request_id, event.finish) for event in engine.step()] == [("a", "length")]


def test_more_requests_than_the_queue_holds_are_taken_as_there_is_room() -> None:
    engine = tiny_engine(max_waiting=2, max_running=3)
    requests = [random_prompt(0, seed=n).request(str(n), max_tokens=2) for n in range(20)]
    ended = [event.request_id for event in engine.generate(requests) if event.finish]
    assert sorted(ended, key=int) == [str(n) for n in range(20)]


def test_an_endless_source_is_read_lazily() -> None:
    engine = tiny_engine(max_waiting=4)
    source = (random_prompt(0, seed=n).request(str(n), max_tokens=1) for n in itertools.count())
    ended = [event.request_id for event in itertools.islice(engine.generate(source), 30)]
    assert ended == [str(n) for n in range(30)]


def test_a_refused_request_ends_those_before_it() -> None:
    engine = tiny_engine()
    good, bad = (random_prompt(1, seed=1).request(str(n), max_tokens=n) for n in (5, 0))
    with pytest.raises(RequestError, match="max_tokens"):
        list(engine.generate([good, bad]))
    assert not engine.has_work
    assert engine.stats().used_bytes == 0


def test_a_policy_may_be_written_short() -> None:
    def answer(policy: Any) -> Any:
        asked = random_prompt(2, seed=3).request("a", policy)
        events = list(tiny_engine().generate([asked]))
        return [event.token_id for event in events], events[-1].cache

    assert answer("h2o@0.4") == answer(CachePolicy("h2o", keep=0.4))
    with pytest.raises(PolicyError, match="unknown method 'zip'"):
        answer("zip@0.4")
