"""The load generator against servers that behave in every way."""

import threading
import time

import pytest

from server.bench.load.arrivals import Schedule
from server.bench.load.client import Target, first_model
from server.bench.load.generator import run
from server.bench.load.measures import Slo, measure
from server.bench.load.workload import Spread, Workload
from tests.server.bench.stub_server import standing_in
from tests.server.process import serving_process

SMALL = Workload("m", Spread(1, 1), 16, Spread(3, 3), Spread(4, 4))
ONE = Schedule(concurrency=1, num_requests=1)


def only(url, workload=SMALL, **target):
    (sample,) = run(Target(url, **target), workload, ONE).samples
    return sample


def test_a_slow_server_cannot_hide_its_queue():
    """One request at a time, 50 ms each, due every 10 ms: the last one waits for all the others.

    A generator that waits for the server (coordinated omission) would report 50 ms for each.
    """
    turn = threading.Lock()

    def slow(call):
        with turn:
            time.sleep(0.05)
            call.whole(1)

    with standing_in(slow) as url:
        measured = run(Target(url), SMALL, Schedule(rate_per_s=100, num_requests=20))
        one_by_one = run(Target(url), SMALL, Schedule(concurrency=1, num_requests=20))
    waits_s = sorted(sample.ttft_s for sample in measured.samples)
    last_due_s = max(sample.due_s for sample in measured.samples)
    assert waits_s[-1] >= 20 * 0.05 - last_due_s
    assert waits_s[10] > 2 * sorted(sample.ttft_s for sample in one_by_one.samples)[10]
    assert max(sample.sent_s - sample.due_s for sample in measured.samples) < 0.5


def test_a_fixed_number_of_clients_is_never_exceeded():
    at_once, max_at_once, lock = 0, 0, threading.Lock()

    def counted(call):
        nonlocal at_once, max_at_once
        with lock:
            at_once += 1
            max_at_once = max(max_at_once, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        call.whole(1)

    with standing_in(counted) as url:
        measured = run(Target(url), SMALL, Schedule(concurrency=3, num_requests=12))
    assert max_at_once == 3
    assert [sample.index for sample in measured.samples] == list(range(12))


def test_a_duration_ends_the_sending_and_awaits_the_answers():
    with standing_in(lambda call: call.whole(2, gap_s=0.05)) as url:
        measured = run(Target(url), SMALL, Schedule(concurrency=2, duration_s=0.25))
    assert 2 <= len(measured.samples) <= 8
    assert all(sample.error is None for sample in measured.samples)
    assert all(sample.sent_s < 0.5 for sample in measured.samples)


def test_warm_up_requests_are_other_ones_and_are_not_measured():
    bodies = []

    def keep(call):
        bodies.append(call.body["messages"])
        call.whole(1)

    with standing_in(keep) as url:
        measured = run(Target(url), SMALL, ONE, warm_up=2)
    assert len(measured.samples) == 1
    assert len(bodies) == 3
    assert all(bodies.count(body) == 1 for body in bodies)


def test_tokens_are_of_usage_where_pieces_hold_several():
    def two_pieces(call):
        call.begin()
        call.piece("one two three ")
        call.piece("four", "length")
        call.usage(prompt_tokens=9, completion_tokens=4, kv_cache={"bytes": 5, "full_bytes": 25})

    with standing_in(two_pieces) as url:
        sample = only(url)
    assert (sample.prompt_tokens, sample.output_tokens, len(sample.piece_s)) == (9, 4, 2)
    assert (sample.kv_bytes, sample.kv_full_bytes) == (5, 25)
    assert 0 <= sample.sent_s <= sample.first_s <= sample.end_s


def test_without_usage_an_answer_that_ended_by_length_is_counted_and_others_are_not():
    def ended(reason):
        def answer(call):
            call.begin()
            call.piece("word", reason)

        return answer

    with standing_in(ended("length")) as url:
        assert only(url).output_tokens == 4
    with standing_in(ended("stop")) as url:
        sample = only(url)
    assert (sample.output_tokens, sample.error) == (None, None)


def begun(then):
    def answer(call):
        call.begin()
        call.piece("word")
        then(call)

    return answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda call: call.status(429, {"error": {"code": "queue_full"}}), "http_429 queue_full"),
        (lambda call: call.status(502, "not an envelope"), "http_502"),
        (lambda call: None, "dropped"),
        (begun(lambda call: None), "incomplete"),
        (begun(lambda call: call.send("{not json")), "not_json"),
        (begun(lambda call: call.send('{"error": {"message": "x"}}')), "error_event"),
        (begun(lambda call: time.sleep(0.5)), "timeout"),
        (lambda call: time.sleep(0.5), "timeout"),
    ],
)
def test_every_way_to_fail_is_counted_as_what_it_is(answer, kind):
    with standing_in(answer) as url:
        sample = only(url, timeout_s=0.2 if kind == "timeout" else 30)
    assert sample.error == kind
    assert measure([sample], 1.0, Slo(ttft_s=1))["good"] == 0


def test_nobody_there_is_a_connection_error():
    with standing_in(lambda call: None) as url:
        pass
    assert only(url).error == "connect"


def test_the_key_is_sent_and_never_shown():
    seen = []

    def keep(call):
        seen.append(call._handler.headers["authorization"])
        call.whole(1)

    with standing_in(keep) as url:
        only(url, api_key="secret")
        assert "secret" not in repr(Target(url, "secret"))
    assert seen == ["Bearer secret"]


def test_the_address_may_end_in_v1_and_the_model_is_the_first_listed():
    with standing_in(lambda call: call.whole(1)) as url:
        assert only(f"{url}/v1/").error is None
        assert first_model(Target(f"{url}/v1")) == "stand-in"
    with pytest.raises(ValueError, match="--model"):
        first_model(Target(url))


def test_a_server_without_our_metrics_has_no_memory_rather_than_none_used():
    with standing_in(lambda call: call.whole(1), metrics="vllm:num_requests_running 3\n") as url:
        assert run(Target(url), SMALL, ONE).kv == ()


@pytest.mark.e2e
def test_this_server_is_measured_with_its_memory_and_its_policies():
    mixed = Workload(
        "fake",
        Spread(1, 2),
        16,
        answer_tokens=Spread(6, 6),
        policies=(("full", 1), ("look-m@0.2", 1)),
    )
    with serving_process("--model", "fake:step_s=0.005") as server:
        measured = run(Target(server.url), mixed, Schedule(concurrency=4, num_requests=16))
    assert {sample.policy for sample in measured.samples} == {"full", "look-m@0.2"}
    assert all(sample.error is None for sample in measured.samples)
    assert all(sample.output_tokens == 6 for sample in measured.samples)
    kept = {sample.policy: sample.kv_bytes for sample in measured.samples}
    assert 0 < kept["look-m@0.2"] < kept["full"]
    assert len(measured.kv) >= 2
    assert all(look.capacity_bytes > 0 for look in measured.kv)
