from collections.abc import Callable

import numpy as np
import pytest

from lookm.config import EngineConfig
from lookm.errors import ConfigError, ModelError, PromptTooLongError, QueueFullError, RequestError
from lookm.types import CachePolicy, ImageInput, Request, Sampling, TokenEvent
from server.fake import engine as fake
from server.fake.engine import FakeEngine

Make = Callable[..., Request]


def run(engine: FakeEngine) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    while engine.has_work:
        events += engine.step()
    return events


def answer(request: Request) -> tuple[str, TokenEvent]:
    engine = FakeEngine.from_config(EngineConfig(model="fake"))
    engine.add(request)
    events = run(engine)
    assert [event.finish is None for event in events] == [True] * (len(events) - 1) + [False]
    return "".join(event.text for event in events), events[-1]


def test_words_come_until_max_tokens(make_request: Make) -> None:
    text, last = answer(make_request(max_tokens=3))
    assert text == "word0 word1 word2"
    assert (last.finish, last.num_generated) == ("length", 3)


def test_stop_strings_end_the_text_before_them(make_request: Make) -> None:
    text, last = answer(make_request(max_tokens=9, stop=("rd2 w", "zzz")))
    assert text == "word0 word1 wo"
    assert last.finish == "stop"


def test_end_of_sequence_can_be_ignored(make_request: Make) -> None:
    assert answer(make_request(ids=(fake.STOP_ID,), max_tokens=9))[1].finish == "stop"
    last = answer(make_request(ids=(fake.STOP_ID,), max_tokens=9, ignore_eos=True))[1]
    assert last.finish == "length"


def test_reports_are_on_the_first_and_last_event_only(make_request: Make) -> None:
    engine = FakeEngine.from_config(EngineConfig(model="fake"))
    images = (ImageInput("d", {"p": np.zeros(1)}, 60),)
    policy = CachePolicy("look-m", keep=0.2)
    engine.add(Request("a", tuple(range(100)), images, policy, Sampling(max_tokens=4)))
    events = run(engine)
    assert [event.cache is not None for event in events] == [True, False, False, True]
    assert [event.timing is not None for event in events] == [False, False, False, True]
    report = events[0].cache
    assert report is not None
    assert (report.kept_tokens, report.evicted_tokens, report.image_tokens) == (20, 80, 60)
    assert report.compressed
    assert report.bytes * 5 == report.full_bytes


def test_abort_ends_running_and_waiting_requests_once(make_request: Make) -> None:
    engine = FakeEngine.from_config(EngineConfig(model="fake", max_running=1))
    engine.add(make_request("run", max_tokens=100))
    engine.add(make_request("wait"))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    engine.abort("run")
    engine.abort("wait")
    engine.abort("wait")
    engine.abort("unknown")
    assert [(e.request_id, e.finish) for e in run(engine)] == [("run", "abort"), ("wait", "abort")]
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_requests_it_cannot_serve_are_refused(make_request: Make) -> None:
    engine = FakeEngine.from_config(EngineConfig(model="fake", max_running=2, max_waiting=1))
    with pytest.raises(PromptTooLongError, match="Shorten"):
        engine.add(make_request(max_tokens=10_000))
    with pytest.raises(RequestError):
        engine.add(make_request(ids=(fake.REJECT_ID,)))
    for name in "abc":  # as many as run at once, and one that waits
        engine.add(make_request(name))
    with pytest.raises(QueueFullError):
        engine.add(make_request("d"))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)


def test_one_request_can_fail_alone(make_request: Make) -> None:
    text, last = answer(make_request(ids=(fake.ERROR_ID,)))
    assert (text, last.finish) == ("word0 word1", "error")
    assert last.error


def test_options_are_read_from_the_model_name() -> None:
    assert fake.FakeOptions.parse("fake") == fake.FakeOptions()
    assert fake.FakeOptions.parse("fake:step_s=0.5,fail=load").step_s == 0.5
    with pytest.raises(ConfigError, match="'stp'"):
        fake.FakeOptions.parse("fake:stp=1")
    with pytest.raises(ConfigError, match="number"):
        fake.FakeOptions.parse("fake:step_s=fast")
    with pytest.raises(ModelError):
        FakeEngine.from_config(EngineConfig(model="fake:fail=load"))
